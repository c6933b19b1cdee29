# Every recipe calls one tool. Builds of the Go programs that the tests run on are kept in $JACKLINE_CACHE (~/.cache/jackline).
CLUSTER ?= target/cluster
built = $${CARGO_TARGET_DIR:-target}/debug

.PHONY: demo test lint bench bench-large bench-objects bench-scale crash fuzz generate cluster-up cluster-down bootstrap programs

demo: programs ## the whole story on a real cluster (KEEP=1 leaves it up)
	$(built)/demo $(if $(KEEP),--keep) --dir $(CLUSTER)

test: bootstrap ## everything that CI runs
	tests/run

lint: bootstrap ## formatting and clippy, warnings denied
	tests/run lint

bench: bootstrap ## side by side with Debian's restic, and beside Velero's times
	tests/run bench

bench-large: bootstrap ## two million files, and sources that change, on disk: 20 minutes, 36 GiB
	tests/run bench-large

bench-objects: bootstrap ## backups and restores on a cluster, beside Velero's times
	tests/run bench-objects

bench-scale: bootstrap ## 10,000 pods on 2,500 claims; a backup of 100,000 objects in 5,000 namespaces
	tests/run bench-scale

crash: bootstrap ## the program killed at every request to its S3 server, some minutes
	tests/run crash

fuzz: bootstrap ## every parser of the repository format, a minute each (JACKLINE_FUZZ_SECONDS)
	tests/run fuzz

generate: ## CRDs and reference pages from the code
	tests/run generate

cluster-up: programs ## a real single-node Kubernetes, kubeconfig in target/cluster
	$(built)/test-cluster --dir $(CLUSTER) up

cluster-down: programs
	$(built)/test-cluster --dir $(CLUSTER) down

# The whole workspace at once: building one package alone would build its dependencies again with other features.
programs: bootstrap
	cargo build --quiet --workspace --bins

bootstrap:
	@tests/bootstrap
