#!/usr/bin/env bash
# Run experiments of docs/experiments/README.md, print their reports and keep them in docs/experiments/results; each goes on where it was stopped.
#
#   bash scripts/experiments.sh style              # or k, heads, dreambooth, gora, or several of them
#   WORKERS=1 bash scripts/experiments.sh style    # how many processes share the runs, a core each; 2 by default
#   PYTHON=echo bash scripts/experiments.sh k      # show the commands alone
#
# Needs the extras plots and build, npm for the pictures of the style, and the folder of the eight subjects' photographs in DREAMBOOTH.
# What is under way lies in the folder STATE.  Both folders are relative to the project's.
set -euo pipefail
cd "$(dirname "$0")/.."
STATE=${STATE:-build} WORKERS=${WORKERS:-2} PYTHON=${PYTHON:-python} DREAMBOOTH=${DREAMBOOTH:-dreambooth}
export OMP_NUM_THREADS=1
workers=()

stop() {
    kill -TERM "${workers[@]}" 2>/dev/null || true # while they start they ignore INT, as background jobs do; later it is the same request
    wait || true
    exit 130
}
trap stop INT TERM

compare() { # one command, by all workers
    local code=0 complete=
    for _ in $(seq "$WORKERS"); do
        $PYTHON -m gralora_diffusion compare "$@" &
        workers+=($!)
    done
    for worker in "${workers[@]}"; do wait "$worker" && complete=1 || code=$?; done
    workers=()
    [ -n "$complete" ] || exit $code # each of them ends well only when all runs are done
}

report() {
    $PYTHON -m gralora_diffusion compare --report "$@"
}

has() { # a package, before hours of work that it would be missed after
    $PYTHON -c "import $1" 2>/dev/null && return
    echo "experiments.sh: the package $1 is missing: pip install '.[plots,build]'" >&2
    exit 2
}

sticker() { # the style's pictures, complete or absent
    if [ "$PYTHON" = echo ] || [ -d "$STATE/sticker" ]; then return; fi
    has resvg_py
    rm -rf "$STATE/sticker.part"
    $PYTHON scripts/tiny_base/draw_style.py --state "$STATE/tiny_base" --output "$STATE/sticker.part" --number 400
    mv "$STATE/sticker.part" "$STATE/sticker"
}

photographs() {
    if [ "$PYTHON" = echo ] || [ -d "$DREAMBOOTH/dog" ]; then return; fi
    echo "experiments.sh: there are no photographs in $DREAMBOOTH: DREAMBOOTH=DIR names the folder that holds backpack, can, cat, dog and the others" >&2
    exit 2
}

captioned=(--instance_data_dir "$STATE/sticker")
validation=(--seeds 0 1)
test=(--seeds 2 3 4 5 6 --part test --tuned --score "held-out loss")

style() {
    sticker
    local runs=(--output "$STATE/style" "${captioned[@]}")
    compare "${runs[@]}" --methods lora --ranks 4 16 --lrs 3e-4 1e-3 3e-3 1e-2 "${validation[@]}"
    compare "${runs[@]}" --methods lora --ranks 40 --lrs 3e-4 1e-3 3e-3 "${validation[@]}"
    compare "${runs[@]}" --methods gralora hybrid --ranks 4 --k 2 --lrs 3e-4 1e-3 3e-3 1e-2 3e-2 "${validation[@]}"
    compare "${runs[@]}" --methods gralora --ranks 4 --k 4 --lrs 3e-4 1e-3 3e-3 1e-2 "${validation[@]}"
    compare "${runs[@]}" --methods gralora --ranks 16 --k 2 4 --lrs 3e-4 1e-3 3e-3 1e-2 "${validation[@]}"
    compare "${runs[@]}" --methods gralora --ranks 40 --k 2 4 --lrs 3e-4 1e-3 3e-3 "${validation[@]}"
    compare "${runs[@]}" --methods lora gralora --ranks 4 16 40 --k 2 4 --lrs 3e-4 1e-3 3e-3 1e-2 3e-2 "${test[@]}"
    compare "${runs[@]}" --methods hybrid --ranks 4 --k 2 --lrs 3e-4 1e-3 3e-3 1e-2 3e-2 "${test[@]}"
    compare "${runs[@]}" --methods lora --ranks 16 --lrs 1e-3 --seeds 2 3 4 5 6 --part test # in docs/experiments/results the loss does not tell it from 3e-3
    report --output "$STATE/style" --k 2 4 --keep docs/experiments/results/style
}

k() { # in the style's folder, whose runs with k 2 and 4 serve here too
    sticker
    local runs=(--output "$STATE/style" "${captioned[@]}" --methods gralora --ranks 16 --k 1 2 4 8 --lrs 3e-4 1e-3 3e-3 1e-2)
    compare "${runs[@]}" "${validation[@]}"
    compare "${runs[@]}" "${test[@]}"
    report --output "$STATE/style" --methods gralora --ranks 16 --baseline "gralora k1" --keep docs/experiments/results/k
}

heads() {
    sticker
    local runs=(--output "$STATE/heads" "${captioned[@]}" --targets "(down_blocks.2|mid_block|up_blocks.0)[.].*attn1[.]to_")
    runs+=(--methods gralora --ranks 20 --k 4 5 --lrs 3e-3 1e-2 3e-2)
    compare "${runs[@]}" "${validation[@]}"
    compare "${runs[@]}" "${test[@]}"
    report --output "$STATE/heads" --baseline "gralora k4" --keep docs/experiments/results/heads
}

dreambooth() {
    photographs
    local own="the embedded base's own image-text encoder (emoji)" subjects=()
    for subject in backpack can cat dog rc_car=car red_cartoon=cartoon teapot vase; do subjects+=("$DREAMBOOTH/$subject"); done
    compare --output "$STATE/dreambooth" --subjects "${subjects[@]}" --prompts docs/experiments/subject_prompts.txt --num_inference_steps 12 \
        --methods our-lora gralora t-lora t-gralora oft --ranks 8 --k 2 --steps 120 --batch_size 2 --lrs 3e-4 1e-3 --seeds 0 1
    report --output "$STATE/dreambooth" --unit subject --baseline our-lora --score "subject, $own" --front "prompt, $own" --keep docs/experiments/results/dreambooth
}

gora() {
    sticker
    photographs
    local runs=(--ranks 16 --k 2) arms=(our-lora gralora gora gralora-gora gralora-energy gralora-ralora gralora-random gralora-inverse)
    local tests=("${runs[@]}" --lrs 1e-4 3e-4 1e-3 3e-3 --seeds 0 1 2 3 4 --part test --tuned "$STATE/gora-rates" --score "held-out loss")
    tests+=(--held_out_every 25 --strengths 0.5 --drift_prompts docs/experiments/drift_prompts.txt)
    compare --output "$STATE/gora-rates" "${captioned[@]}" --methods our-lora gralora gora gralora-gora "${runs[@]}" --lrs 3e-4 1e-3 3e-3 --seeds 100
    compare --output "$STATE/gora-rates" "${captioned[@]}" --methods gora "${runs[@]}" --lrs 1e-4 --seeds 100
    compare --output "$STATE/gora" "${captioned[@]}" --methods "${arms[@]}" gralora-ranks gralora-start "${tests[@]}"
    compare --output "$STATE/gora-subjects" --subjects gralora_diffusion/example=robot "$DREAMBOOTH/dog" --prompts docs/experiments/subject_prompts.txt \
        --methods "${arms[@]}" --steps 200 "${tests[@]}"
    report --output "$STATE/gora" --baseline "gralora k2" our-lora gralora-random gralora-inverse --keep docs/experiments/results/gora
    report --output "$STATE/gora-subjects" --baseline "gralora k2" our-lora gralora-random gralora-inverse --keep docs/experiments/results/gora-subjects
}

[ $# -gt 0 ] || { echo "experiments.sh: name experiments: style, k, heads, dreambooth, gora" >&2 && exit 2; }
for experiment in "$@"; do
    case $experiment in
    style | k | heads | dreambooth | gora) ;;
    *)
        echo "experiments.sh: no experiment is called $experiment; there are style, k, heads, dreambooth and gora" >&2
        exit 2
        ;;
    esac
done
has matplotlib
for experiment in "$@"; do "$experiment"; done
