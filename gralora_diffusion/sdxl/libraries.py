"""The import of diffusers and transformers, which threads must not do at once.

Both import their modules when a class is first asked for, and these modules import each other in circles: a
thread that asks for one class while another thread is at another can get a module that is only half there.
"""

import threading

_importing = threading.Lock()


def import_libraries() -> None:
    """Import what SDXL needs of both, one thread at a time; before anything else is taken from them."""
    with _importing:
        from diffusers import (  # noqa: F401
            AutoencoderKL,
            EulerDiscreteScheduler,
            FlowMatchEulerDiscreteScheduler,
            StableDiffusionXLPipeline,
            UNet2DConditionModel,
        )
        from transformers import (  # noqa: F401
            CLIPTextConfig,
            CLIPTextModel,
            CLIPTextModelWithProjection,
            CLIPTokenizer,
            CLIPVisionModelWithProjection,
        )
