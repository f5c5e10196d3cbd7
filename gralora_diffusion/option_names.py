"""Names that users of other tools try on the command line, and the ones to use."""

OWN_NAMES = {  # of other commands' options: sd-scripts' gen_img.py, A1111's words, `gralora train`
    "--max_train_steps": "--steps",
    "--train_data_dir": "--instance_data_dir",
    "--steps": "--num_inference_steps",
    "--sampler": "--scheduler",
    "--scale": "--guidance_scale",
    "--cfg_scale": "--guidance_scale",
    "--neg": "--negative_prompt",
    "--negative": "--negative_prompt",
    "--from_file": "--prompt_file",
    "--images_per_prompt": "--num_images",
    "--network_weights": "--adapter",
    "--network_mul": "--strength",
    "--lora": "--adapter",
    "--ckpt": "--pretrained_model_name_or_path",
    "--vae": "--pretrained_vae_model_name_or_path",
    "--outdir": "--output",
    "--W": "--width",
    "--H": "--height",
}
