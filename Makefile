# The front door. `make demo` and `make test` do everything, including what is missing on a fresh machine.
BUILD ?= build
JOBS  ?= $(shell nproc)
CTEST  = ctest --test-dir $(1) --output-on-failure -j$(JOBS)

.PHONY: all build demo test asan tsan clang bench golden parity format tidy size install clean packages

all: build

packages:
	@bash tools/install_packages.sh

build: packages
	@cmake -S . -B $(BUILD) -G Ninja > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }; rm -f $(BUILD).log
	@cmake --build $(BUILD) -j$(JOBS)

demo: packages
	@cmake -S . -B $(BUILD) -G Ninja > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }; rm -f $(BUILD).log
	@cmake --build $(BUILD) -j$(JOBS) --target moe-run
	@$(BUILD)/moe-run demo

test: build
	@$(call CTEST,$(BUILD))

# AddressSanitizer and UndefinedBehaviorSanitizer over the whole test list.
asan: packages
	@cmake -S . -B $(BUILD)-asan -G Ninja -DMOE_SANITIZE=address > /dev/null
	@cmake --build $(BUILD)-asan -j$(JOBS)
	@$(call CTEST,$(BUILD)-asan)

tsan: packages
	@cmake -S . -B $(BUILD)-tsan -G Ninja -DMOE_SANITIZE=thread > /dev/null
	@cmake --build $(BUILD)-tsan -j$(JOBS)
	@$(call CTEST,$(BUILD)-tsan)

clang: packages
	@CXX=clang++-14 cmake -S . -B $(BUILD)-clang -G Ninja > /dev/null
	@cmake --build $(BUILD)-clang -j$(JOBS)

# Speed beside peers found at run time; JSON lines under bench/results/.
bench: packages
	@bash bench/run.sh

# Regenerates the golden files from the public reference implementations (needs Python packages).
golden:
	@bash tests/golden/run.sh golden

# Parity against them on real checkpoints and data: MODEL=folder DATA=folder.
parity: build
	@bash tests/golden/run.sh parity "$(MODEL)" "$(DATA)"

format:
	@git ls-files '*.h' '*.cc' | xargs clang-format-14 -i

tidy: build
	@run-clang-tidy-14 -p $(BUILD) -quiet

size:
	@git ls-files '*.h' '*.cc' | xargs wc -l | sort -n | awk '{print} END {}' | tail -30

install: build
	@cmake --install $(BUILD)

clean:
	@rm -rf $(BUILD) $(BUILD)-*
