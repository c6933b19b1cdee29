# Every recipe calls one tool. Builds of the Go programs that the tests run on are kept in $JACKLINE_CACHE (~/.cache/jackline).
CLUSTER ?= target/cluster
cluster = cargo run --quiet -p jackline-test-cluster --bin test-cluster --

.PHONY: demo test lint bench bench-scale generate cluster-up cluster-down bootstrap

demo: bootstrap ## the whole story on a real cluster (KEEP=1 leaves it up)
	cargo run --quiet -p jackline-e2e --bin demo -- $(if $(KEEP),--keep)

test: bootstrap ## everything that CI runs
	tests/run

lint: bootstrap ## formatting and clippy, warnings denied
	tests/run lint

bench: bootstrap ## side by side with Debian's restic
	cargo run --quiet --release -p jackline-bench

bench-scale: bootstrap ## 10,000 pods on 2,500 claims
	cargo run --quiet --release -p jackline-bench-scale

generate: ## CRDs and reference pages from the code
	tests/run generate

cluster-up: bootstrap ## a real single-node Kubernetes, kubeconfig in target/cluster
	$(cluster) --dir $(CLUSTER) up

cluster-down:
	$(cluster) --dir $(CLUSTER) down

bootstrap:
	@tests/bootstrap
