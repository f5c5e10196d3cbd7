"""The groups of options: each function here makes a field of its group, as in `data(default, help)`."""

from gralora_diffusion.config.choices import SCHEDULES, STEP_RULES
from gralora_diffusion.options import in_group

GROUPS = (  # in the order of --help and of the page
    "Base model", "Images and captions", "Training", "Adapter", "Sample images", "When to stop", "Files",
    "Memory and speed", "Optimizer", "Loss", "Prior preservation", "Ranks from gradients", "Hub and trackers",
)  # fmt: skip
base = in_group("Base model")
start = in_group("Base model", resumable=True)
data = in_group("Images and captions")
images = in_group("Images and captions", resumable=True)  # a run knows them by content
training = in_group("Training")
adapter = in_group("Adapter")
dataset = in_group("Images and captions", needs={"dataset_name": True})
text_rate = in_group("Training", needs={"train_text_encoder": True})
samples = in_group("Sample images", resumable=True)
stopping = in_group("When to stop")
output = in_group("Files", resumable=True)
machine = in_group("Memory and speed")
optim = in_group("Optimizer")
betas = in_group("Optimizer", needs={"optimizer": ("AdamW", "Prodigy", "AdamWScheduleFree")})
text_decay = in_group("Optimizer", needs={"train_text_encoder": True})
prodigy = in_group("Optimizer", needs={"optimizer": ("Prodigy",)})
loss = in_group("Loss")
logit = in_group("Loss", needs={"timestep_density": ("logit_normal",)})
pyramid = in_group("Loss", needs={"multires_noise_iterations": True})
huber = in_group("Loss", needs={"loss_type": ("huber", "smooth_l1")})
prior = in_group("Prior preservation")
ranks = in_group("Ranks from gradients")
gora = in_group("Ranks from gradients", needs={"allocate": True, "allocation": True})
tracking = in_group("Hub and trackers", resumable=True)

SHUFFLED, RECOMPUTED = {"shuffle_captions": True}, {"gradient_checkpointing": True}
MASKED = {"masked_loss": True}
EVALUATED = {"validation_steps": True, "validation_epochs": True}
STEPPED = {"lr_scheduler": (STEP_RULES,)}
ADAMW, NO_AVERAGE = {"optimizer": ("AdamW",)}, {"optimizer": ("AdamW", "Prodigy", "Adafactor", "SGD")}
CACHE = dict(kind="folder", resumable=True, needs={"cache_latents": True})
WARMUP = {
    "lr_scheduler": tuple(s for s in SCHEDULES if s not in ("constant", STEP_RULES)),
    "optimizer": ("AdamWScheduleFree",),
}
