# Make without a target runs what a reviewer runs. Everything needs Go only; the tests need git, those of signatures ssh-keygen
# and gpg, those of several replicas redis-server, and e2e adds what it needs itself. .ci/run installs all of it.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
KUSTOMIZE := v5.8.2
LDFLAGS := -s -w -X main.buildVersion=$(VERSION) -X sigs.k8s.io/kustomize/api/provenance.version=$(KUSTOMIZE)
ENGINE ?= docker
SOAK ?= 20m
TOOL := go tool -modfile=tools/go.mod

.PHONY: all build demo check test race kill kill-leaders soak e2e e2e-argocd e2e-image e2e-pods e2e-releases bench fuzz update clean image sbom

all: check test

build: ## static binaries in bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

image: ## both images, by docker or what ENGINE says, for this machine
	for i in digestlock digestlock-companion; do $(ENGINE) build --target $$i -t $$i:$(VERSION) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) . || exit 1; done

sbom: build ## bin/*.cdx.json, what each program is made of, read off the programs themselves
	for p in digestlock digestlock-companion docker-credential-digestlock; do \
	  $(TOOL) cyclonedx-gomod bin -json -std -version $(VERSION) -output bin/$$p.cdx.json bin/$$p || exit 1; done

demo: ## the whole loop on this machine, with real output
	go run ./cmd/digestlock demo

check: ## format, vet, staticcheck, tidy modules
	@test -z "$$($(TOOL) gofumpt -l $$(git ls-files '*.go'))" || { $(TOOL) gofumpt -l $$(git ls-files '*.go'); echo 'run: make fmt'; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	go mod tidy -diff

fmt:
	$(TOOL) gofumpt -w $$(git ls-files '*.go')

test: ## unit tests, scripts, and the loop with a real registry and real git
	go test ./...

race:
	go test -race ./...

kill: ## companions killed at 200 random instants, against a real Git server
	go test -count=1 -run '^TestKilled$$' ./cmd/digestlock-companion -kills 200

kill-leaders: ## the same of companions with a lease, on Kubernetes
	cd e2e && go test -count=1 -timeout 30m -v -run '^TestCompanionOnKubernetes$$' . -kills 200

# One set of compiled packages for all of these, and for the images: compiling them anew takes minutes.
e2e e2e-argocd e2e-image e2e-pods e2e-releases kill-leaders: export CGO_ENABLED := 0

soak: ## everything at once for SOAK, with programs killed and people in between; no growth, no wrong commit
	go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./bench/soak -soak $(SOAK)

e2e: ## with Argo CD's own cmp-server and repo-server code, a real registry, git http-backend, a real Gitea, OpenSSH, Kubernetes (wants etcd and sshd)
	cd e2e && go vet . && go test -count=1 -timeout 30m -skip '^TestArgoCD' .

e2e-argocd: ## on the real Argo CD: its components, Kubernetes and ours, as processes (wants etcd and redis-server)
	cd e2e && go test -count=1 -timeout 30m -run '^TestArgoCD' -v .

e2e-image: ## the Dockerfile built on stand-in bases, and the plugin's image run under argocd-cmp-server (wants root, buildah, podman, runc and busybox-static)
	cd e2e && DIGESTLOCK_TEST_IMAGE=1 go test -count=1 -timeout 30m -v -run '^TestImage$$' .

# Not in .ci/run: it builds and copies for minutes, and few machines let it.
e2e-pods: ## Argo CD and Digestlock in pods of a real Kubernetes, in namespaces of its own (wants root, what e2e-argocd and e2e-image want, containerd, containernetworking-plugins, iproute2, iptables, ssh and gpg)
	cd e2e && DIGESTLOCK_TEST_PODS=1 go test -count=1 -timeout 60m -v -run '^TestPods$$' .

e2e-releases: ## the plugin under the argocd-cmp-server of Argo CD v3.2.12, and of v3.6.1, which needs Go 1.27
	cd e2e/cmp-server-3.2 && go build -o ../../bin/ .
	cd e2e/cmp-server-3.6 && GOTOOLCHAIN=go1.27.0 go build -o ../../bin/ .
	for release in 3.2 3.6; do (cd e2e && DIGESTLOCK_TEST_CMP_SERVER=$(CURDIR)/bin/cmp-server-$$release go test -count=1 -v \
	  -run '^(TestPinnedRender|TestPushToRollback|TestConcurrentRenders|TestFailingRender|TestNothingIsLeftAfterRender|TestParameters|TestLive)$$' .) || exit 1; done

bench: ## ratios in one run, see bench/README.md
	go run ./bench $(BENCH_FLAGS)

fuzz: ## a minute for each fuzz test
	@for p in hook image lock migrate pin; do for f in $$(go test -list '^Fuzz' ./internal/$$p | grep ^Fuzz); do \
	  go test -run '^$$' -fuzz "^$$f$$" -fuzztime 60s ./internal/$$p || exit 1; done; done
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime 60s ./internal/hook
	go test -run '^$$' -fuzz '^FuzzRead$$' -fuzztime 60s ./internal/render
	go test -run '^$$' -fuzz '^FuzzParameters$$' -fuzztime 60s ./plugin

update: ## rewrite generated files
	go test ./plugin -update

clean:
	rm -rf bin
