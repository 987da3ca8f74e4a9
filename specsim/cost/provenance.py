"""What a predicted time rests on, where that is less than a measurement of the same thing."""

from __future__ import annotations

from collections.abc import Iterator

from specsim.deployment import Deployment


def cost_warnings(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """(code, message) for constants that were not measured on this GPU, or not with this
    runtime."""
    gpu, runtime = deployment.gpu, deployment.runtime
    if not gpu.constants_source.startswith("fitted"):
        yield (
            "unmeasured-gpu",
            f"no kernels of {gpu.name} were measured; its constants: {gpu.constants_source} "
            "(median error of such products 7 %, up to 14 %; docs/cost.md)",
        )
    if runtime.engine == "ideal":
        return
    named = f"{runtime.name} ({runtime.engine} {runtime.version})"
    if not runtime.measured_on:
        yield (
            "runtime-unmeasured",
            f"host times of {named} are assumptions with wide intervals: {runtime.source}",
        )
    elif gpu.name not in runtime.measured_on:
        yield (
            "runtime-extrapolated",
            f"host times of {named} were read off {', '.join(runtime.measured_on)}, not {gpu.name}",
        )
