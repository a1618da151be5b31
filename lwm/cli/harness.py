"""`lwm eval harness`: lm-evaluation-harness, with models of this package."""

from collections.abc import Sequence


def eval_harness() -> None:
    """Runs lm-evaluation-harness on a model; all options are those of its own command `lm_eval`."""


def run_harness(arguments: Sequence[str]) -> None:
    """Runs the harness with the arguments of its own command line.

    Raises:
        UserError: It is not installed, or the model cannot be loaded.
    """
    import jax

    from lwm.eval.harness import main
    from lwm.folders import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    main(arguments)
