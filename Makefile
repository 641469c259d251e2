# make demo               set-up, then the digits example from training to a simulated Cortex-M4
# make test, test-full    set-up, then the tests; test-full also runs those that take minutes
# make faults             300 damaged output directories and 300 faulty invocations, with the table
# make lint               ruff and mypy
# make wheel-test         every fourth test on the installed wheel and sdist; all of them: make wheel-test EVERY=1
# make bench-mcu, bench-torch, bench-llm, bench-low-bits, bench-coded-weights, bench-sparse-blocks, bench-stream    tables, and benchmarks/results/*.json
# make bench-folder       peak memory and time of a model of 1.1 billion weights, from a folder to a folder
# make mlperf-models, mlperf-data    models and data of examples/mlperf_tiny, downloaded and converted
# make fuzz               random modules through the whole compiler, compared with torch: make fuzz N=2000 SEED=0
# make layer-table        every kind of layer x rank x groups x bits x layouts x targets, compiled, run, compared
# make bench-architectures   small Hugging Face networks: lengths, stored weights, static int8, without transformers
# make bench-methods      methods of the literature beside the baselines of their papers, on small networks
# make bench-combinations  orders of pruning, distillation, quantization and sharing, and leaving one out
# make bench-trained      networks that packages ship: accuracy, predicted and linked flash
# make bench-memory       planned arenas beside the least possible, with cycles on a Cortex-M4
# make bench-memory-bounds    arenas beside the bound of any order of execution; what the order gains
# make bench-recurrent    GRU, LSTM and a voice detector on integers: metrics, instructions, memory
# make bench-flash        predicted flash beside the linker's, int8 and float, on a Cortex-M4 and a Cortex-M0+
# make bench-compare      figures that differ between two recorded commits: make bench-compare A=HEAD~1 B=HEAD
# make bench-costs        predicted instructions and cycles beside counted ones, on every core that is simulated
# make calibrate-costs, calibrate-stack    count layers on every core, renew backends/c/cost/measured
# make bench-prune, bench-hessian, bench-mixed, bench-allocation, zoo    the same

PYTHON ?= python3
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
PACKAGES := specs ir passes backends compiler
JOBS ?= 2
EVERY ?= 4

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-full faults lint wheel-test clean zoo fuzz layer-table bench-mcu bench-torch bench-llm bench-low-bits bench-coded-weights bench-sparse-blocks bench-stream bench-architectures bench-trained bench-recurrent \
        bench-flash bench-memory bench-memory-bounds bench-methods bench-combinations bench-costs calibrate-costs calibrate-stack bench-prune bench-hessian bench-mixed bench-allocation \
        bench-compare mlperf-models mlperf-data bench-folder

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt setuptools
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

# Compilers and simulators come with apt-get where that can be; what is missing is named, with what is skipped for it.
build/.tools-%: .ci/install_tools.sh
	@mkdir -p build
	bash .ci/install_tools.sh $*
	@touch $@

demo: setup build/.tools-demo
	$(PY) examples/digits/train.py
	$(PY) examples/digits/demo.py

mlperf-models mlperf-data: mlperf-%: setup
	$(PY) examples/mlperf_tiny/obtain.py $*

test: setup build/.tools-all
	$(PYTEST) -q -n $(JOBS) -m 'not slow'

test-full: setup build/.tools-all
	$(PYTEST) -q -n $(JOBS)

faults: setup build/.tools-all
	$(PY) tests/compiler/fault_generator.py --count 300

lint: setup build/typing/fxpress
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	MYPYPATH=build/typing .venv/bin/mypy $(PACKAGES:%=-p fxpress.%)
	MYPYPATH=build/typing:benchmarks .venv/bin/mypy benchmarks/*.py
	for folder in $(sort $(dir $(wildcard examples/*/*.py))); do \
	    MYPYPATH=build/typing:$$folder .venv/bin/mypy $$folder*.py || exit 1; done

# mypy does not see through an editable install: a folder that holds this one under the package's name.
build/typing/fxpress:
	mkdir -p build/typing
	ln -sfn ../.. $@

# The wheel is built from the sdist, so what these tests import went through both.
wheel-test: setup build/.tools-all
	rm -rf build/dist build/installed
	$(PY) -m build --no-isolation --outdir build/dist .
	$(PY) -m pip install --quiet --no-deps --target build/installed build/dist/*.whl
	PYTHONPATH=$(CURDIR)/build/installed FXPRESS_INSTALLED=$(CURDIR)/build/installed \
	    $(PYTEST) -q -n $(JOBS) -m 'not slow' tests/project
	PYTHONPATH=$(CURDIR)/build/installed FXPRESS_INSTALLED=$(CURDIR)/build/installed \
	    $(PYTEST) -q -n $(JOBS) -m 'not slow' --every $(EVERY) tests/specs tests/compiler tests/examples

bench-mcu: setup build/.tools-all
	$(PY) benchmarks/mcu.py
	$(PY) benchmarks/history.py record mcu

bench-llm: setup build/.tools-demo
	$(PY) benchmarks/llm.py
	$(PY) examples/language_model/perplexity.py --results benchmarks/results/llm.json
	$(PY) benchmarks/history.py record llm

bench-architectures: setup build/.tools-demo
	$(PY) benchmarks/architectures.py

bench-torch: setup
	$(PY) benchmarks/bench_torch.py
	$(PY) benchmarks/history.py record torch

bench-folder: setup build/.tools-demo
	$(PY) benchmarks/folder.py
	$(PY) benchmarks/history.py record folder

bench-prune: setup
	$(PY) benchmarks/prune.py --jobs $(JOBS)
	$(PY) benchmarks/history.py record prune

bench-low-bits: setup build/.tools-all
	$(PY) benchmarks/low_bits.py
	$(PY) benchmarks/history.py record low_bits

bench-coded-weights: setup build/.tools-all
	$(PY) benchmarks/coded_weights.py
	$(PY) benchmarks/history.py record coded_weights

bench-sparse-blocks: setup build/.tools-all
	$(PY) benchmarks/sparse_blocks.py
	$(PY) benchmarks/history.py record sparse_blocks

bench-stream: setup build/.tools-all
	$(PY) benchmarks/stream.py
	$(PY) benchmarks/history.py record stream

bench-methods: setup
	$(PY) benchmarks/methods.py
	$(PY) benchmarks/history.py record methods

bench-combinations: setup
	$(PY) benchmarks/combinations.py
	$(PY) benchmarks/history.py record combinations

bench-trained: setup build/.tools-all
	$(PY) benchmarks/trained.py
	$(PY) benchmarks/history.py record trained

bench-memory: setup build/.tools-all
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/history.py record memory

bench-memory-bounds: setup
	$(PY) benchmarks/memory_bounds.py
	$(PY) benchmarks/history.py record memory_bounds

bench-recurrent: setup build/.tools-all
	$(PY) benchmarks/recurrent.py
	$(PY) benchmarks/history.py record recurrent

bench-flash: setup build/.tools-all
	$(PY) benchmarks/code_size.py

bench-costs: setup build/.tools-all
	$(PY) benchmarks/predicted_costs.py

calibrate-costs: setup build/.tools-all
	$(PY) benchmarks/kernel_costs.py --write

calibrate-stack: setup build/.tools-all
	$(PY) benchmarks/kernel_stack.py --write

bench-hessian: setup
	$(PY) benchmarks/hessian.py
	$(PY) benchmarks/history.py record hessian

bench-mixed: setup build/.tools-all
	$(PY) benchmarks/mixed.py --jobs $(JOBS)
	$(PY) benchmarks/small_target.py
	$(PY) benchmarks/history.py record mixed

bench-allocation: setup
	$(PY) benchmarks/allocation.py

# what differs between two recorded commits: make bench-compare A=HEAD~1 B=HEAD
bench-compare: setup
	$(PY) benchmarks/history.py compare $(A) $(B)

zoo: setup
	$(PY) benchmarks/zoo.py

N ?= 200
SEED ?= 0
fuzz: setup build/.tools-demo
	$(PY) benchmarks/fuzz.py $(N) --seed $(SEED) --jobs $(JOBS)

layer-table: setup build/.tools-demo
	$(PY) benchmarks/layer_table.py --jobs $(JOBS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
