# The commands CI runs, for your own machine.

default: test lint

# Builds the extension and installs tuili with everything development needs.
install:
    pip install '.[dev]'

test *args:
    pytest {{ args }}

# Every test on two processes, and which lines of Python no test ran.
coverage:
    pytest -n 2 --dist worksteal --cov=tuili --cov-report=term-missing:skip-covered --cov-fail-under=90

lint:
    ruff check src tests benchmarks scripts examples
    ruff format --check src tests benchmarks scripts examples
    mypy
    lint-imports
    clang-format --dry-run --Werror $(git ls-files csrc)

format:
    ruff check --fix src tests benchmarks scripts examples
    ruff format src tests benchmarks scripts examples
    clang-format -i $(git ls-files csrc)

# The native tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize:
    scripts/sanitize.sh
