# lifeboat: `make help` lists the targets.
GO        ?= go
TESTFLAGS ?=
PKG       ?= ./...
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
IMAGES    ?= 10000
COLD      ?= 500
SHARD     ?= 1/1
KILLS     ?= 100
EVERY     ?= 1
REPEAT    ?= 5

GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags='-s -w'
# /init without inlined functions is 0.3 MB smaller (0.2 MB of it compressed), with functions packed closely 0.1 MB, with the
# older garbage collector 0.04 MB; zstd and gzip keep theirs inlined.
INITFLAGS := -gcflags=all=-l -gcflags=github.com/klauspost/...= -ldflags='-s -w -funcalign=1'

.PHONY: help setup build build-amd64 build-arm64 test lint fuzz bench size demo powercut mutants scoreboard run clean distclean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install what tests and demo need; unpack kernels and peers into build/ (Debian 12, root)
	@scripts/setup.sh

build: build-amd64 build-arm64 ## bin/{init,init-raw,init-full,bootcount,lifeboat}, and the same for arm64 in bin/linux-arm64/

build-amd64: OUT = bin
build-arm64: OUT = bin/linux-arm64
build-amd64 build-arm64: build-%:
	@mkdir -p $(OUT)
	GOARCH=$* GOEXPERIMENT=nogreenteagc $(GOBUILD) $(INITFLAGS) -tags slim -o $(OUT)/init ./cmd/init
	GOARCH=$* GOEXPERIMENT=nogreenteagc $(GOBUILD) $(INITFLAGS) -o $(OUT)/init-full ./cmd/init
	GOARCH=$* GOEXPERIMENT=nogreenteagc $(GOBUILD) $(INITFLAGS) -gcflags=lifeboat/squashfs= -gcflags=lifeboat/unpack= -tags raw,slim -o $(OUT)/init-raw ./cmd/init
	GOARCH=$* $(GOBUILD) -o $(OUT)/ ./cmd/bootcount ./cmd/lifeboat

test: setup build ## all tests (PKG=./qemu/... TESTFLAGS=-v for some)
	$(GO) test -count=1 -timeout 60m $(TESTFLAGS) $(PKG)

lint: ## gofumpt, go vet (amd64, arm64), staticcheck, govulncheck
	@files=$$($(GO) tool gofumpt -l $$(git ls-files '*.go')); [ -z "$$files" ] || { echo "gofumpt -w $$files"; exit 1; }
	GOARCH=amd64 $(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	for tag in raw slim raw,slim debug hostile; do $(GO) vet -tags $$tag ./cmd/init || exit 1; done
	$(GO) tool staticcheck ./...
	@out=$$($(GO) tool govulncheck ./... 2>&1); rc=$$?; \
	case "$$rc:$$out" in \
	0:*) echo "govulncheck: nothing found" ;; \
	3:*) echo "$$out"; exit 1 ;; \
	*"fetching vulnerabilities"*) echo "govulncheck: skipped: no database" ;; \
	*) echo "$$out"; exit 1 ;; \
	esac

fuzz: ## every fuzz target for FUZZTIME=10s
	@scripts/fuzz.sh $(FUZZTIME) $(PKG)

bench: setup build ## the numbers: throughput; boot, install and memory beside others' (REPEAT=5; a quiet machine)
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -timeout 60m $(PKG)
	$(GO) run ./qemu/measure -repeat $(REPEAT)

size: setup build ## what /init and the whole initramfs weigh, part by part, against their limits
	@scripts/size.sh

demo: setup build ## the whole story in the virtual device
	$(GO) run ./qemu/demo -v

scoreboard: setup ## power cuts in the peers' boot states, with their own tools; writes docs/powercut-scoreboard.md (30 minutes; ONLY=NAME,NAME)
	$(GO) run ./qemu/scoreboard -only "$(ONLY)" -doc docs/powercut-scoreboard.md

powercut: setup build ## the campaign: crash images under the real kernel, kills; out/powercut/index.html (hours; IMAGES= COLD= SHARD=i/n)
	$(GO) run ./qemu/powercut campaign --images $(IMAGES) --cold $(COLD) --shard $(SHARD) --resume
	for l in grub uboot; do $(GO) run ./qemu/powercut campaign --loader $$l --out out/powercut/$$l --resume || exit 1; done
	$(GO) run ./qemu/powercut kills --runs $(KILLS)
	$(GO) test -count=1 -v -timeout 45m -run 'Model|TestCrash$$' ./boot ./powercut >out/powercut/nets.txt
	$(GO) run ./qemu/powercut report

mutants: setup ## take the product's promises away one at a time: which net notices? (15 minutes; EVERY=n for a sample)
	$(GO) run ./powercut/mutate -every $(EVERY) -out out/powercut/mutants.json

run: setup build ## the demo's device on this terminal; Ctrl-] h lists the commands (plug in, pull out, cut the power)
	$(GO) run ./qemu/demo -prepare out/run
	bin/lifeboat vm run --kernel build/kernel/generic/vmlinuz --initrd out/run/initramfs \
		--disk out/run/disk.img --stick out/run/stick.img

clean: ## everything made here but the downloads
	rm -rf bin out build/test

distclean: clean ## the downloads too
	rm -rf build
