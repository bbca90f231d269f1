"""Images on a GPU: encoding with a full-size image tokenizer, and generation."""

from __future__ import annotations

from tools.benchmarks.gpu.setting import Setting, median_seconds

BATCH, CODES = {"cuda": (1, 16), "cpu": (1, 2)}, {"cuda": 64, "cpu": 4}  # of what is drawn
SIDES = {"cuda": 512, "cpu": 32}


def encoding(setting: Setting) -> dict:
    """Images per second of Chameleon's encoder in float32 and in bfloat16, and the share of codes that differ.

    Weights are random; the codebook is as wide as what is looked up in it, so that rounding decides as few codes as it does
    with trained ones.
    """
    import torch

    from pretrain.system.light_imports import vq_model
    from tools.benchmarks.tokenizing import CHAMELEON

    torch.manual_seed(0)
    sizes = dict(CHAMELEON)
    if not setting.gpu:
        sizes |= {"block_out_channels": [32] * 5, "latent_channels": 16, "num_vq_embeddings": 64, "layers_per_block": 1}
    model = vq_model()(**sizes).eval()
    side, batch = SIDES[setting.device], 16 if setting.gpu else 2
    pixels = torch.rand(batch, 3, side, side) * 2 - 1
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(pixels[:2]))
        model.quantize.embedding.weight.normal_(latents.mean(), latents.std())
    model, pixels = model.to(setting.device), pixels.to(setting.device)

    def encode(half: bool) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(setting.device, torch.bfloat16, enabled=half):
            latents = model.quant_conv(model.encoder(pixels))
        with torch.no_grad():
            return model.quantize(latents.float())[2][2].view(batch, -1)

    found: dict[str, float] = {"pictures": batch, "side": side}
    for name, half in (("fp32", False), ("bf16", True)):
        _, seconds, _ = median_seconds(lambda: encode(half), setting.device, setting.repeats)  # noqa: B023
        found[f"{name} pictures_per_s"] = round(batch / seconds, 2)
    found["codes that differ"] = round((encode(False) != encode(True)).float().mean().item(), 5)
    return found


def drawing(setting: Setting) -> dict:
    """Milliseconds per code of the 3B's layers with guidance, by batch size, with the preallocated cache of
    generation."""
    import torch

    from model.hf.configuration_uni_x import UniXConfig
    from model.hf.modeling_uni_x import UniXForCausalLM
    from tools.benchmarks import cases

    config = cases.uni_x_config(setting.model)
    dtype = torch.bfloat16 if setting.gpu else torch.float32
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = UniXForCausalLM(UniXConfig(**config.to_dict())).to(dtype).eval()
    start, count, found = config.vision_start_token_id, CODES[setting.device], {}
    for batch in BATCH[setting.device]:
        prompts = torch.tensor([[*range(1, 13), start]] * batch, device=setting.device)
        nothing = torch.tensor([5, 6, 7, start], device=setting.device)

        def draw() -> torch.Tensor:
            chance = [torch.Generator().manual_seed(row) for row in range(batch)]  # noqa: B023
            return model.generate_images(prompts, None, nothing, num_codes=count, guidance_scale=4.0, generator=chance)  # noqa: B023

        _, seconds, _ = median_seconds(draw, setting.device, max(2, setting.repeats // 2), warm=1)
        found[f"batch {batch}"] = {
            "ms_per_code": round(1000 * seconds / count, 3),
            "codes_per_s": round(batch * count / seconds, 1),
        }
    return found
