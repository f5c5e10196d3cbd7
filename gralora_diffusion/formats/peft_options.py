"""Options of PEFT's LoraConfig that change what the tensors of an adapter mean."""

from gralora_diffusion.options import ConfigError

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights, also pissa_niter_N
NOT_ADDITIVE = {  # {option: why the adapter is not a change of weights}
    "alora_invocation_tokens": "acts only after an invocation token",
    "kasa_config": "truncates the base's weights",
    "layer_replication": "copies layers of the base",
    "monteclora_config": "samples its factors",
    "use_qalora": "pools the inputs of its layers",
    "use_bdlora": "has factors in diagonal blocks",
    "arrow_config": "chooses among several adapters",
    "target_parameters": "adapts parameters that are no layer's weight",
}


def check_peft_options(config: dict, where: str) -> None:
    """Raises ConfigError for a config whose tensors alone do not give the change of the weights.

    Initializations such as PiSSA's change the base as well; PEFT itself converts such an adapter when it is
    saved with path_initial_model_for_weight_conversion, and the config then names a plain initialization.
    """
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        way = "save it with PEFT's path_initial_model_for_weight_conversion, which gives a plain LoRA"
        problem = f"was initialized by {start[:40]}, which changes the base's weights"
        raise ConfigError(f"{where} {problem}: {way}")
    for option, meaning in NOT_ADDITIVE.items():
        if config.get(option):
            raise ConfigError(f"{where} has {option}, so it {meaning} and cannot be read as one change")
