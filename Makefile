# Everything that a developer or the CI runs. The tests, the demo, the benchmark and the soak need root, because they run
# Asterisk, PostgreSQL and the portal as users of their own: cargo builds as you are, and runs the result by sudo.

HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
ifneq ($(shell id -u),0)
export CARGO_TARGET_$(HOST)_RUNNER := sudo -E
endif

DENY_VERSION := 0.20.2
CARGO_DEB_VERSION := 3.7.0
DENY := target/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
CARGO_DEB := target/tools/cargo-deb-$(CARGO_DEB_VERSION)/bin/cargo-deb

.PHONY: help setup demo run test bench soak lint deb advisories

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

setup: ## install what the lab needs, with a real Asterisk 22; once
	@lab/setup.sh

demo: setup ## the main job in a few seconds: users, apply, phones that register and call
	cargo test --locked --test demo

run: setup ## the portal and an Asterisk to play with, until Ctrl-C
	cargo test --locked --test demo --no-run
	@trap '' INT; cargo test --locked --quiet --test demo -- run # the demo alone minds the Ctrl-C

test: setup $(CARGO_DEB) ## all tests, the demo among them; says how long that takes
	@lab/test.sh

bench: setup ## how fast it is, beside its floors; writes docs/performance.md
	cargo test --locked --release --test bench

soak: setup ## twenty minutes of everything, random histories beside it; writes docs/performance/soak.md
	cargo test --locked --release --test soak

lint: setup $(DENY) ## format, clippy, licences and bans of the dependencies, shell scripts, the API's document
	@cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 || rustup component add clippy rustfmt
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --test bench --test soak --locked -- -D warnings # no test of `make test`, so of no target above
	$(DENY) check bans licenses sources
	shellcheck .ci/run lab/*.sh packaging/postinst packaging/postrm
	lab/lint-document.sh

deb: $(CARGO_DEB) ## the Debian package, in target/debian
	cargo run --locked --quiet --example pages
	gzip --best --no-name --stdout packaging/NEWS >target/pages/NEWS.Debian.gz
	$(CARGO_DEB) --locked $(DEB_OPTIONS)

advisories: $(DENY) ## known vulnerabilities of the dependencies; fetches the advisory database
	$(DENY) check advisories

$(DENY):
	cargo install cargo-deny --version $(DENY_VERSION) --locked --debug --no-default-features \
		--root target/tools/cargo-deny-$(DENY_VERSION)

$(CARGO_DEB):
	cargo install cargo-deb --version $(CARGO_DEB_VERSION) --locked --debug \
		--root target/tools/cargo-deb-$(CARGO_DEB_VERSION)
