# Needs Go, gcc, make and git; the first run compiles SQLite, which takes a few
# minutes. `make` is what a change must pass.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 60s
BENCH    ?= .
PKG      ?= ./...

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

# No -trimpath and no tags anywhere: each set of flags compiles SQLite anew.

.PHONY: check build man run demo test race fuzz bench golden receivers client deb directory fmt vet staticcheck vuln clean

check: fmt vet staticcheck test

build:
	$(GO) build -ldflags "-X main.linkedVersion=$(VERSION)" -o bin/accountledger ./cmd/accountledger

# The manual pages, into man.
man: build
	bin/accountledger man --dir man

run: build
	bin/accountledger serve --data ./data

demo: build
	bin/accountledger demo

# Everything there is. ACCOUNTLEDGER_TEST_KILLS=1000 kills the server more often.
test:
	$(GO) test -timeout 20m $(PKG)

race:
	$(GO) test -race -short -timeout 20m $(PKG)

# Each fuzz target for FUZZTIME.
fuzz:
	@for pkg in $$($(GO) list $(PKG)); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

bench:
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $(PKG)

# What the receivers in JavaScript need, which some tests start; without Node.js
# these tests are skipped.
receivers:
	cd testdata/receivers && npm ci

# What lints openapi.json and asyncapi.json, and makes a client of the first, in
# tests that are skipped without Node.js.
client:
	cd testdata/client && npm ci

# A Debian package in dist/.
deb: build
	deploy/debian/build.sh bin/accountledger $(VERSION) dist

# Keep a data directory as this version writes it, for later ones to be tested
# with; once for each release. The name is the release's.
directory: build
	$(GO) test ./cmd/accountledger -run '^TestKeepDirectory$$' -count 1 -keep $(VERSION) -program $(CURDIR)/bin/accountledger

# Rewrite the golden files, to be looked at as a diff.
golden:
	$(GO) test ./domain ./projections ./httpapi ./cmd/accountledger -update

fmt:
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }

vet:
	$(GO) vet $(PKG)

staticcheck:
	$(GO) run $(STATICCHECK) $(PKG)

vuln:
	$(GO) run $(GOVULNCHECK) $(PKG)

clean:
	rm -rf bin dist
