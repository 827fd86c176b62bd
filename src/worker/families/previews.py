"""Pictures on the way: what a wish looks like after some of its steps, for those that ask."""

from collections.abc import Callable, Sequence

from torch import Tensor

from worker.engine import device as devices
from worker.engine.decoded import make_picture
from worker.errors import BadPicture, CudaOutOfMemory
from worker.families.drawing import PictureVae
from worker.families.masking import find_original
from worker.families.sharing import Sharing
from worker.media.picture import Picture, Preview
from worker.tasks.picture import PictureWish


def choose_steps(count: int, steps: int) -> frozenset[int]:
    """Return after which steps, from 1, a picture is shown: evenly spread, never after the last."""
    return frozenset(steps * number // (count + 1) for number in range(1, count + 1)) - {0}


class Previews:
    """The previews of wishes that are denoised together; each is shown once.

    What follows is the same with them and without: they are decoded from an estimate of the final
    latents, and where memory does not suffice for one there are no more.
    """

    def __init__(self, wishes: Sequence[PictureWish], sharing: Sharing, vae: PictureVae) -> None:
        self._wishes = wishes
        self._sharing = sharing
        self._vae = vae
        self._shown = 0
        self._is_off = not any(wish.previews for wish in wishes)

    def watch(self, step: int, steps: int, estimate: Callable[[], Tensor]) -> None:
        """Show what is due after a step; raises DeviceLost."""
        if self._is_off or step <= self._shown:  # denoised again: seen before
            return
        self._shown = step
        due = [
            place
            for place, wish in enumerate(self._wishes)
            if step in choose_steps(wish.previews, steps) and self._sharing.find_end(place) is None
        ]
        if not due:
            return
        is_short = False
        try:
            with devices.translate_errors():
                self._show(due, estimate())
        except CudaOutOfMemory:
            is_short = True  # its tensors live in the exception: leave it before freeing
        if is_short:
            self._is_off = True
            devices.free_memory()

    def _show(self, places: Sequence[int], latents: Tensor) -> None:
        for place in places:
            wish, row = self._wishes[place], self._sharing.find_row(place)
            tiled = not self._vae.has_room(wish.width * wish.height)
            pixels = self._vae.decode(latents[row : row + 1], wish.width, wish.height, tiled=tiled)
            try:
                image = make_picture(*pixels)
            except BadPicture:
                continue  # the complete picture says whether it is one
            picture = Picture(image, wish.final, find_original(wish))
            self._sharing.hand_over_to(place, Preview(picture, wish.seed))
