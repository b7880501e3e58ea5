"""Times that a device cannot be faster than, and images that its memory holds, from what a program needs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mask_rcnn_jax.planning.accounting import Account, Kernel
from mask_rcnn_jax.planning.compiling import Plan
from mask_rcnn_jax.planning.devices import GIB, Hardware


@dataclass(frozen=True)
class Floor:
    """Seconds of a call that a device takes at least, all at its peak."""

    traffic: float
    products: float
    exchange: float  # of what crosses devices
    in_turn: float  # kernels one after the other, each as long as the longer of its traffic and its products

    @property
    def seconds(self) -> float:
        """The longest of the three, were they to happen at the same time all along."""
        return max(self.traffic, self.products, self.exchange)


def floor(found: Account, hardware: Hardware) -> Floor:
    """Compute the least times of an account on a kind of device."""
    exchange = sum(each.sent * each.times for each in found.collectives) / hardware.link
    return Floor(
        traffic=found.traffic / hardware.bandwidth,
        products=sum(_multiplying(kernel, hardware) * kernel.times for kernel in found.kernels),
        exchange=exchange,
        in_turn=exchange + sum(_alone(kernel, hardware) * kernel.times for kernel in found.kernels),
    )


def _multiplying(kernel: Kernel, hardware: Hardware) -> float:
    return sum(each.operations / hardware.peaks[each.precision] for each in kernel.products)


def _alone(kernel: Kernel, hardware: Hardware) -> float:
    return max(kernel.traffic / hardware.bandwidth, _multiplying(kernel, hardware))


@dataclass(frozen=True)
class Fit:
    """Images that a device's memory holds at a time; `how` says what the number was got from."""

    images: int
    how: str


def fit(plan: Plan, others: Iterable[Plan] = ()) -> Fit | None:
    """Estimate how many images of a program fit, None where its memory is not known.

    Memory is taken as a part that stays and a part that each image adds: from two programs that differ in their images
    alone, or else by taking the state, its gradients and the code for the part that stays.
    """
    if plan.needed is None:
        return None
    alike = [each for each in others if each.remat == plan.remat and each.needed and each.images != plan.images]
    memory = plan.target.hardware.memory
    if alike:
        other = max(alike, key=lambda each: abs(each.images - plan.images))
        added = (plan.needed - (other.needed or 0)) / (plan.images - other.images)
        if added > 0:
            stays, batches = plan.needed - added * plan.images, sorted((plan.batch, other.batch))
            return Fit(max(0, int((memory - stays) / added)), f"from the batches of {batches[0]} and {batches[1]}")
    stays = plan.fixed + (plan.memory.code if plan.memory else 0)
    added = (plan.needed - stays) / plan.images
    if added <= 0:
        return None
    return Fit(max(0, int((memory - stays) / added)), "if all but the state and gradients grows with the images")


def remedy(plan: Plan, plans: Sequence[Plan]) -> str:
    """Return the sentence that says what would make a program fit that does not."""
    memory = f"{plan.target.hardware.memory / GIB:.1f} GiB"
    needs = "more than" if plan.needed is None else f"{plan.needed / GIB:.1f} GiB of"
    ways = []
    held = fit(plan, plans)
    if held is not None and held.images:
        images = held.images * plan.devices * plan.parts
        ways.append(f"--batch {images} ({held.images} images a device, {held.how})")
        devices = -(-plan.batch // (held.images * plan.parts))
        ways.append(f"{devices} devices or more for these")
        if plan.what == "train" and plan.parts == 1:
            ways.append(f"--set accumulation_steps={-(-int(plan.images) // held.images)}")
    if plan.what == "train" and not plan.remat:
        ways.append("--remat backbone")
    ways.append("a smaller --size")
    reason = f"a batch of {plan.batch} does not fit {plan.target}: a device needs {needs} {memory}"
    return f"{reason}; try {', or '.join(ways)}"
