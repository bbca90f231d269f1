"""Reconstruction quality of an image tokenizer: PSNR and SSIM, and codebook usage."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pretrain.system.errors import UserError
from tools.evaluation.record import check_finite, machine, make_record, require_all

if TYPE_CHECKING:
    from PIL import Image


def reconstruction(args: Namespace) -> dict:
    """Compare every image of --data, preprocessed as for training, with its reconstruction -> the result. Raises
    UserError.

    Scores are means over pictures of measures of 8-bit RGB pixels, by torchmetrics: PSNR in dB, SSIM with a Gaussian
    window of 11 pixels and reflected borders. An input that holds a damaged picture has no score.
    """
    import torch

    from pretrain.system.torchvision_compat import ensure_torchvision

    ensure_torchvision()  # torchmetrics imports it where it is installed
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    from tokenization.vq import load_vq
    from tools.generation.arguments import choose_device

    device = choose_device(args.device)
    vq = load_vq(str(args.vq or args.model / "vq"), device=device)
    names, problems, psnr, ssim = [], {}, [], []
    used, digest = torch.zeros(vq.codebook_size, dtype=torch.bool), Digest()
    for name, picture, problem in pictures_of(str(args.data), vq.image_size, args.limit):
        names.append(name)
        if picture is None:
            problems[name] = problem
            continue
        digest.add(picture)
        codes = vq.encode([picture])
        used[torch.from_numpy(codes.astype("int64")).flatten()] = True
        (kept,) = vq.decode(codes)
        there, here = (tensor_of(image) for image in (picture, kept))
        psnr.append(float(peak_signal_noise_ratio(here, there, data_range=255.0)))
        ssim.append(float(cast(torch.Tensor, structural_similarity_index_measure(here, there, data_range=255.0))))
    if not names:
        raise UserError(f"{args.data}: holds no pictures: give a corpus that tokenization/shard_images.py takes")
    first = next(iter(problems.values()), "")
    require_all(str(args.data), names, set(names) - set(problems), f"take them out, or mend them: {first}")
    scores = {"psnr": mean(psnr), "ssim": mean(ssim), "codes_used": int(used.sum()) / vq.codebook_size}
    check_finite(str(args.data), scores)
    return make_record(
        "reconstruction",
        len(names),
        len(psnr),
        model={"from": "image tokenizer", "name": vq.name, "fingerprint": vq.fingerprint[:16]},
        data={"name": args.data.name, "digest": digest.hex()},
        settings={"image_size": vq.image_size, "limit": args.limit, "dtype": "float32", **machine(device)},
        scores=scores,
    )


class Digest:
    """SHA-256 over images in order."""

    def __init__(self) -> None:
        import hashlib

        self.hash = hashlib.sha256()

    def add(self, picture: Image.Image) -> None:
        """Add an image's pixels."""
        self.hash.update(f"{picture.size}\n".encode() + picture.tobytes())

    def hex(self) -> str:
        """Digest so far."""
        return self.hash.hexdigest()


def pictures_of(path: str, size: int, limit: int) -> Iterator[tuple[str, Image.Image | None, str]]:
    """Yield (name, square image, "") or (name, None, what is wrong) of an input of shard_images.py; 0 is no limit."""
    from tokenization import storage
    from tokenization.preprocess import RejectedImage, open_image, preprocess
    from tokenization.readers import Reject, open_corpora

    count = 0
    for corpus in open_corpora([path]):
        for file in corpus.files:
            with corpus.open(file) as opened:
                for _, item in corpus.read(opened, 0):
                    if isinstance(item, Reject):
                        yield f"{item.file}:{item.id}", None, item.detail
                        count += 1
                    for number, picture in enumerate(() if isinstance(item, Reject) else item.pictures):
                        name = f"{item.id}" + (f"/{number}" if number else "")
                        try:
                            data = storage.read_bytes(picture.data) if isinstance(picture.data, str) else picture.data
                            yield name, preprocess(open_image(cast(Path | bytes, data)), size), ""
                        except RejectedImage as error:
                            yield name, None, str(error)
                        count += 1
                        if limit and count >= limit:
                            return


def tensor_of(picture: Image.Image):
    """RGB image as float32 [1, 3, h, w], 0 to 255."""
    import numpy
    import torch

    return torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32)).permute(2, 0, 1)[None]


def mean(values: list[float]) -> float:
    """Mean of at least one number."""
    return sum(values) / len(values)
