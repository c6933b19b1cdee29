// Command volumes gives a test cluster two storage classes with dynamic provisioning: `local`, whose volumes are
// PersistentVolumes of source local, and `csi`, whose volumes a CSI driver in this process publishes as bind mounts. Every
// volume is a directory on the machine that all nodes are on. It runs on the host beside each kubelet; one of them
// provisions for all nodes, the others have the driver alone.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig of an administrator")
	node := flag.String("node", "", "name of the node")
	kubelet := flag.String("kubelet", "", "the kubelet's root directory")
	dir := flag.String("dir", "", "where the volumes' directories are made")
	driverOnly := flag.Bool("driver-only", false, "publish volumes on this node and provision none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *node, *kubelet, *dir, *driverOnly); err != nil {
		fmt.Fprintln(os.Stderr, "volumes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, node, kubelet, dir string, driverOnly bool) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	driver := &driver{node: node, dir: filepath.Join(dir, "csi")}
	if err := driver.serve(kubelet); err != nil {
		return fmt.Errorf("CSI driver: %w", err)
	}
	if driverOnly {
		<-ctx.Done()
		return nil
	}
	provisioner := &provisioner{
		client: client, node: node, localDir: filepath.Join(dir, "local"), driver: driver,
	}
	return provisioner.run(ctx)
}
