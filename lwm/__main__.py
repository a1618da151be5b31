"""Entry point of `python -m lwm`."""

from lwm.cli import main

if __name__ == "__main__":
    main()
