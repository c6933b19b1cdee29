package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

const (
	localProvisioner = "jackline.test/local"

	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	provisionerOf   = "volume.kubernetes.io/storage-provisioner"
	selectedNode    = "volume.kubernetes.io/selected-node"
	defaultClass    = "storageclass.kubernetes.io/is-default-class"
	hostnameLabel   = "kubernetes.io/hostname"
	retryAfterError = time.Second
)

// provisioner makes a PersistentVolume for each claim of its classes and deletes it, with its data, when it is released.
type provisioner struct {
	client         kubernetes.Interface
	node, localDir string
	driver         *driver

	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
}

// run reconciles until the context ends. One cluster holds few claims: each change looks at all of them.
func (p *provisioner) run(ctx context.Context) error {
	if err := p.declare(ctx); err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(p.client, 0)
	p.claims = factory.Core().V1().PersistentVolumeClaims().Lister()
	p.volumes = factory.Core().V1().PersistentVolumes().Lister()
	p.classes = factory.Storage().V1().StorageClasses().Lister()
	changed := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: notify, UpdateFunc: func(_, now any) { notify(now) }, DeleteFunc: notify,
	}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().PersistentVolumeClaims().Informer(),
		factory.Core().V1().PersistentVolumes().Informer(),
		factory.Storage().V1().StorageClasses().Informer(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if err := p.reconcile(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "volumes:", err)
				time.AfterFunc(retryAfterError, func() { notify(nil) })
			}
		}
	}
}

// declare creates the two classes and the CSIDriver object.
func (p *provisioner) declare(ctx context.Context) error {
	driver := &storage.CSIDriver{
		ObjectMeta: meta.ObjectMeta{Name: driverName},
		Spec: storage.CSIDriverSpec{
			AttachRequired: ptr.To(false), PodInfoOnMount: ptr.To(false), FSGroupPolicy: ptr.To(storage.FileFSGroupPolicy),
		},
	}
	_, err := p.client.StorageV1().CSIDrivers().Create(ctx, driver, meta.CreateOptions{})
	if err != nil && !errors.IsAlreadyExists(err) {
		return err
	}
	for _, class := range []storage.StorageClass{{
		ObjectMeta:        meta.ObjectMeta{Name: "local", Annotations: map[string]string{defaultClass: "true"}},
		Provisioner:       localProvisioner,
		VolumeBindingMode: ptr.To(storage.VolumeBindingWaitForFirstConsumer),
	}, {
		ObjectMeta:        meta.ObjectMeta{Name: "csi"},
		Provisioner:       driverName,
		VolumeBindingMode: ptr.To(storage.VolumeBindingImmediate),
	}} {
		class.ReclaimPolicy = ptr.To(core.PersistentVolumeReclaimDelete)
		_, err := p.client.StorageV1().StorageClasses().Create(ctx, &class, meta.CreateOptions{})
		if err != nil && !errors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

func (p *provisioner) reconcile(ctx context.Context) error {
	volumes, err := p.volumes.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		if err := p.reclaim(ctx, volume); err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
	}
	claims, err := p.claims.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, claim := range claims {
		if err := p.provision(ctx, claim); err != nil {
			return fmt.Errorf("claim %s/%s: %w", claim.Namespace, claim.Name, err)
		}
	}
	return nil
}

func (p *provisioner) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	by := claim.Annotations[provisionerOf]
	ours := by == localProvisioner || by == driverName
	if !ours || claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil {
		return nil
	}
	if ptr.Deref(claim.Spec.VolumeMode, core.PersistentVolumeFilesystem) != core.PersistentVolumeFilesystem {
		return nil // block volumes are not offered: the claim stays Pending
	}
	name := "pvc-" + string(claim.UID)
	if _, err := p.volumes.Get(name); err == nil {
		return nil
	}
	class, err := p.classes.Get(*claim.Spec.StorageClassName)
	if err != nil {
		return err
	}
	waits := ptr.Deref(class.VolumeBindingMode, storage.VolumeBindingImmediate) == storage.VolumeBindingWaitForFirstConsumer
	if waits && claim.Annotations[selectedNode] == "" {
		return nil
	}
	source, err := p.make(ctx, by, name, claim)
	if err != nil {
		return err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: by}},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, core.PersistentVolumeReclaimDelete),
			StorageClassName:              class.Name,
			VolumeMode:                    claim.Spec.VolumeMode,
			MountOptions:                  class.MountOptions,
			PersistentVolumeSource:        source,
			ClaimRef: &core.ObjectReference{
				Kind: "PersistentVolumeClaim", APIVersion: "v1",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			NodeAffinity: p.affinity(by, claim),
		},
	}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if errors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// affinity binds a local volume to the node that was chosen for it. A CSI volume can be published on every node.
func (p *provisioner) affinity(by string, claim *core.PersistentVolumeClaim) *core.VolumeNodeAffinity {
	if by != localProvisioner {
		return nil
	}
	node := claim.Annotations[selectedNode]
	if node == "" {
		node = p.node
	}
	return &core.VolumeNodeAffinity{Required: &core.NodeSelector{
		NodeSelectorTerms: []core.NodeSelectorTerm{{MatchExpressions: []core.NodeSelectorRequirement{{
			Key: hostnameLabel, Operator: core.NodeSelectorOpIn, Values: []string{node},
		}}}},
	}}
}

// make makes a volume's directory and tells how a PersistentVolume names it.
func (p *provisioner) make(
	ctx context.Context, by, name string, claim *core.PersistentVolumeClaim,
) (core.PersistentVolumeSource, error) {
	if by == localProvisioner {
		dir := filepath.Join(p.localDir, name)
		source := &core.LocalVolumeSource{Path: dir}
		return core.PersistentVolumeSource{Local: source}, makeVolume(dir)
	}
	bytes := claim.Spec.Resources.Requests[core.ResourceStorage]
	created, err := p.driver.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes.Value()},
	})
	if err != nil {
		return core.PersistentVolumeSource{}, err
	}
	source := &core.CSIPersistentVolumeSource{Driver: driverName, VolumeHandle: created.Volume.VolumeId}
	return core.PersistentVolumeSource{CSI: source}, nil
}

// reclaim deletes a volume of ours whose claim is gone.
func (p *provisioner) reclaim(ctx context.Context, volume *core.PersistentVolume) error {
	by := volume.Annotations[provisionedBy]
	ours := by == localProvisioner || by == driverName
	released := volume.Status.Phase == core.VolumeReleased || volume.Status.Phase == core.VolumeFailed
	deletes := volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete
	if !ours || !released || !deletes || volume.DeletionTimestamp != nil {
		return nil
	}
	switch {
	case volume.Spec.Local != nil:
		inside, err := filepath.Rel(p.localDir, volume.Spec.Local.Path)
		if err != nil || !filepath.IsLocal(inside) || inside == "." {
			return fmt.Errorf("%s is not below %s", volume.Spec.Local.Path, p.localDir)
		}
		if err := os.RemoveAll(volume.Spec.Local.Path); err != nil {
			return err
		}
	case volume.Spec.CSI != nil:
		request := &csi.DeleteVolumeRequest{VolumeId: volume.Spec.CSI.VolumeHandle}
		if _, err := p.driver.DeleteVolume(ctx, request); err != nil {
			return err
		}
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{
		Preconditions: &meta.Preconditions{UID: &volume.UID},
	})
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}
