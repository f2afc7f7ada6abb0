# What a person types; the work is in scripts/ and CMakePresets.json.
.PHONY: build demo demo-systems train serve test quality check format asan tsan minimal emulate fuzz docs clean help
.DEFAULT_GOAL := build

FUZZ_SECONDS ?= 60
ONLY ?=
FILTER ?= *

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' Makefile

build:  ## Build build/release/baton
	@scripts/setup
	@scripts/build release baton

demo:  ## Profile, plan and compare on a real model; writes report.html
	@scripts/setup
	@scripts/build release baton
	@scripts/get-model smollm2
	@scripts/demo

serve:  ## Serve a small model to clients of OpenAI's API, http://127.0.0.1:8080
	@scripts/setup
	@scripts/build release baton
	@scripts/get-model smollm2
	@build/release/baton serve models/SmolLM2-135M-Instruct.Q4_1.gguf

demo-systems:  ## Compare the trained models in checkpoints/; writes systems.html
	@scripts/setup
	@scripts/build release baton
	@scripts/demo-systems

train:  ## Build the trainer on LibTorch (build/train/baton-train) and test it on the CPU
	@scripts/setup train
	@scripts/build train baton-train
	@scripts/test train --without-models --only '^train/'

test:  ## Build and run every test; the last line counts them
	@scripts/setup
	@scripts/get-model smollm2 gemma3
	@scripts/test release

quality:  ## Reproduce the quality tables
	@scripts/setup
	@scripts/build release baton
	@scripts/get-model smollm2 gemma3
	@scripts/quality
	@scripts/quality --model models/gemma-3-270m-q4_k_m.gguf --out out/quality-gemma

check:  ## Format, include levels, scripts
	@scripts/setup develop
	@scripts/format --check
	@scripts/check-levels

format:  ## Format every C++ file in place
	@scripts/setup develop
	@scripts/format

asan:  ## Every test that needs no model under AddressSanitizer and UndefinedBehaviorSanitizer; ONLY=REGEX, FILTER=GTEST_FILTER: some
	@scripts/setup
	@scripts/test debug --without-models --only '$(ONLY)' --filter='$(FILTER)'

tsan:  ## Threading and engine tests under ThreadSanitizer (the reference backend has no threads)
	@scripts/setup
	@scripts/test tsan --without-models --filter='-*/ref*' --only '^(base/thread_pool_test|engine/generate_test|engine/scheduler_test|ops/select_test)$$'

minimal:  ## The reference backend alone: builds without Highway
	@scripts/setup
	@scripts/test minimal --without-models

emulate:  ## Tests of the AVX-512 kernels on a machine without AVX-512
	@scripts/setup develop
	@scripts/test emulate --without-models --only '^ops/(attend|linear|mass)_test$$'

fuzz:  ## Fuzz each parser for FUZZ_SECONDS
	@scripts/setup develop
	@scripts/fuzz $(FUZZ_SECONDS)

docs:  ## Run the commands of README.md and docs/ that are marked `sh check`
	@scripts/check-docs

clean:  ## Remove everything built (models and the comparison engine stay)
	rm -rf build/release build/debug build/tsan build/minimal build/emulate build/train build/cuda build/fuzz out report.html
