"""Prior preservation without class images: with the class prompt the model predicts what the base does."""

import torch

from gralora_diffusion.adapters.control import disabled
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.sdxl.base import Prompts, predict


class PriorPrediction:
    """The base's predictions with --class_prompt, and the error of the adapted model's against them.

    L = L_instance + prior_loss_weight * mean((f(x_t, t, class) - f_0(x_t, t, class))^2), where f_0 is f
    without adapters, x_t and t are the noisy training image and its timestep, and class is the prompt's
    embedding with the size and crop of the image. DreamBooth's prior preservation (arXiv 2208.12242, eq. 2)
    with the base's own prediction in place of the noise of generated images.
    """

    def __init__(self, models: dict, encode, config: TrainConfig, device: torch.device, dtype: torch.dtype):
        """models: {component: adapted model}.  encode: captions -> their Prompts."""
        self.models, self.encode = list(models.values()), encode
        self.unet = models["unet"]
        self.prompt, self.weight = config.class_prompt, config.prior_loss_weight
        self.device, self.dtype = device, dtype
        self.is_fixed = not config.train_text_encoder
        self.known: Prompts | None = None

    def prompts(self, n: int) -> Prompts:
        """The class prompt's embeddings n times, by the text encoders as they are now."""
        known = self.known
        if known is None:
            embeds, pooled = self.encode([self.prompt])
            known = Prompts(embeds.to(self.device, self.dtype), pooled.to(self.device, self.dtype))
            if self.is_fixed:
                self.known = known
        return Prompts(known.embeds.expand(n, -1, -1), known.pooled.expand(n, -1))

    @torch.no_grad()
    def of_base(self, noisy: torch.Tensor, timesteps: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """f_0 [n, c, h, w], fp32.

        It must come before the forward pass that is trained: gradient checkpointing repeats that one later,
        with T-LoRA's ranks as the last forward pass has set them.
        """
        with disabled(self.models):
            return predict(self.unet, noisy, timesteps, self.prompts(len(noisy)), sizes).float()

    def with_class(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, sizes: torch.Tensor, prompts: Prompts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(prediction with these prompts, with the class prompt), each [n, c, h, w], in one forward pass."""
        own = self.prompts(len(noisy))
        both = Prompts(torch.cat([prompts.embeds, own.embeds]), torch.cat([prompts.pooled, own.pooled]))
        twice = noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), both, sizes.repeat(2, 1)
        return predict(self.unet, *twice).chunk(2)

    def loss(self, of_class: torch.Tensor, of_base: torch.Tensor) -> torch.Tensor:
        """The weighted mean squared error of the adapted model's prediction with the class prompt."""
        return self.weight * (of_class.float() - of_base).square().mean()
