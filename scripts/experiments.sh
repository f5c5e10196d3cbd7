#!/usr/bin/env bash
# Run the experiments of docs/experiments/README.md, print their reports and keep them in
# docs/experiments/results.  The same command resumes.
#
#   bash scripts/experiments.sh style              # or another of those below, or several
#   WORKERS=1 bash scripts/experiments.sh style    # processes that share the runs, a core each; 2 by default
#   PYTHON=echo bash scripts/experiments.sh k      # print the commands alone
#
# Needs the extras plots and build, npm for the images of the style, and, in DREAMBOOTH, the folder of the
# eight subjects' photographs.  Sweeps are in the folder STATE.  Both folders are relative to the project's.
set -euo pipefail
cd "$(dirname "$0")/.."
STATE=${STATE:-build}
WORKERS=${WORKERS:-2}
PYTHON=${PYTHON:-python}
DREAMBOOTH=${DREAMBOOTH:-dreambooth}
RESULTS=docs/experiments/results
SUBJECT_PROMPTS=docs/experiments/subject_prompts.txt
DRIFT_PROMPTS=docs/experiments/drift_prompts.txt
export OMP_NUM_THREADS=1
workers=()

stop() {
    # TERM and not INT, which background jobs ignore while they start; to a running sweep both are the same
    kill -TERM "${workers[@]}" 2>/dev/null || true
    wait || true
    exit 130
}
trap stop INT TERM

fail() {
    echo "experiments.sh: $1" >&2
    exit 2
}

compare() { # one command, by all workers
    local code=0 complete=
    for _ in $(seq "$WORKERS"); do
        $PYTHON -m gralora_diffusion compare "$@" &
        workers+=($!)
    done
    for worker in "${workers[@]}"; do wait "$worker" && complete=1 || code=$?; done
    workers=()
    [ -n "$complete" ] || exit $code # a worker that ends well has seen all runs done
}

report() {
    $PYTHON -m gralora_diffusion compare --report "$@"
}

has() { # checks for a package, before hours of work that would end without it
    $PYTHON -c "import $1" 2>/dev/null || fail "the package $1 is missing: pip install '.[plots,build]'"
}

sticker() { # the images of the style, complete or absent
    if [ "$PYTHON" = echo ] || [ -d "$STATE/sticker" ]; then return; fi
    has resvg_py
    rm -rf "$STATE/sticker.part"
    $PYTHON scripts/tiny_base/draw_style.py --state "$STATE/tiny_base" --output "$STATE/sticker.part" \
        --number 400
    mv "$STATE/sticker.part" "$STATE/sticker"
}

photographs() {
    if [ "$PYTHON" = echo ] || [ -d "$DREAMBOOTH/dog" ]; then return; fi
    fail "there are no photographs in $DREAMBOOTH: DREAMBOOTH=DIR names the folder of backpack, can, ..."
}

captioned=(--instance_data_dir "$STATE/sticker")
validation=(--seeds 0 1)
test=(--seeds 2 3 4 5 6 --part test --tuned --score "held-out loss")

style() {
    sticker
    local runs=(--output "$STATE/style" "${captioned[@]}")
    local to_3e3=(--lrs 3e-4 1e-3 3e-3)
    local to_1e2=("${to_3e3[@]}" 1e-2)
    local to_3e2=("${to_1e2[@]}" 3e-2)
    compare "${runs[@]}" --methods lora --ranks 4 16 "${to_1e2[@]}" "${validation[@]}"
    compare "${runs[@]}" --methods lora --ranks 40 "${to_3e3[@]}" "${validation[@]}"
    compare "${runs[@]}" --methods gralora hybrid --ranks 4 --k 2 "${to_3e2[@]}" "${validation[@]}"
    compare "${runs[@]}" --methods gralora --ranks 4 --k 4 "${to_1e2[@]}" "${validation[@]}"
    compare "${runs[@]}" --methods gralora --ranks 16 --k 2 4 "${to_1e2[@]}" "${validation[@]}"
    compare "${runs[@]}" --methods gralora --ranks 40 --k 2 4 "${to_3e3[@]}" "${validation[@]}"
    compare "${runs[@]}" --methods lora gralora --ranks 4 16 40 --k 2 4 "${to_3e2[@]}" "${test[@]}"
    compare "${runs[@]}" --methods hybrid --ranks 4 --k 2 "${to_3e2[@]}" "${test[@]}"
    # by its loss in the results, this rate is as good as 3e-3
    compare "${runs[@]}" --methods lora --ranks 16 --lrs 1e-3 --seeds 2 3 4 5 6 --part test
    report --output "$STATE/style" --k 2 4 --keep $RESULTS/style
}

k() { # in the style's folder, whose runs with k 2 and 4 serve here too
    sticker
    local runs=(--output "$STATE/style" "${captioned[@]}" --methods gralora --ranks 16 --k 1 2 4 8)
    runs+=(--lrs 3e-4 1e-3 3e-3 1e-2)
    compare "${runs[@]}" "${validation[@]}"
    compare "${runs[@]}" "${test[@]}"
    report --output "$STATE/style" --methods gralora --ranks 16 --baseline "gralora k1" --keep $RESULTS/k
}

heads() {
    sticker
    local layers="(down_blocks.2|mid_block|up_blocks.0)[.].*attn1[.]to_"
    local runs=(--output "$STATE/heads" "${captioned[@]}" --targets "$layers")
    runs+=(--methods gralora --ranks 20 --k 4 5 --lrs 3e-3 1e-2 3e-2)
    compare "${runs[@]}" "${validation[@]}"
    compare "${runs[@]}" "${test[@]}"
    report --output "$STATE/heads" --baseline "gralora k4" --keep $RESULTS/heads
}

dreambooth() {
    photographs
    local own="the embedded base's own image-text encoder (emoji)" subjects=()
    for subject in backpack can cat dog rc_car=car red_cartoon=cartoon teapot vase; do
        subjects+=("$DREAMBOOTH/$subject")
    done
    compare --output "$STATE/dreambooth" --subjects "${subjects[@]}" --prompts $SUBJECT_PROMPTS \
        --methods our-lora gralora t-lora t-gralora oft --ranks 8 --k 2 --lrs 3e-4 1e-3 --seeds 0 1 \
        --steps 120 --batch_size 2 --num_inference_steps 12
    report --output "$STATE/dreambooth" --unit subject --baseline our-lora --score "subject, $own" \
        --front "prompt, $own" --keep $RESULTS/dreambooth
}

gora() {
    sticker
    photographs
    local arms=(our-lora gralora gora gralora-gora gralora-energy gralora-ralora)
    arms+=(gralora-random gralora-inverse)
    local runs=(--ranks 16 --k 2) rates="$STATE/gora-rates"
    local tests=("${runs[@]}" --lrs 1e-4 3e-4 1e-3 3e-3 --seeds 0 1 2 3 4 --part test --tuned "$rates")
    tests+=(--score "held-out loss" --held_out_every 25 --strengths 0.5 --drift_prompts $DRIFT_PROMPTS)
    local baselines=(--baseline "gralora k2" our-lora gralora-random gralora-inverse)
    compare --output "$rates" "${captioned[@]}" --methods our-lora gralora gora gralora-gora "${runs[@]}" \
        --lrs 3e-4 1e-3 3e-3 --seeds 100
    compare --output "$rates" "${captioned[@]}" --methods gora "${runs[@]}" --lrs 1e-4 --seeds 100
    compare --output "$STATE/gora" "${captioned[@]}" --methods "${arms[@]}" gralora-ranks gralora-start \
        "${tests[@]}"
    compare --output "$STATE/gora-subjects" --subjects gralora_diffusion/example=robot "$DREAMBOOTH/dog" \
        --prompts $SUBJECT_PROMPTS --methods "${arms[@]}" --steps 200 "${tests[@]}"
    report --output "$STATE/gora" "${baselines[@]}" --keep $RESULTS/gora
    report --output "$STATE/gora-subjects" "${baselines[@]}" --keep $RESULTS/gora-subjects
}

outliers() {
    sticker
    by_all_workers scripts/outliers.py style --images "$STATE/sticker" --state "$STATE/outliers-style"
    by_all_workers scripts/outliers.py robot --state "$STATE/outliers-robot"
}

k_by_layer() {
    by_all_workers scripts/k_by_layer.py --state "$STATE/k-by-layer"
}

tasks() {
    local icons
    for icons in twemoji@1.2.5 openmoji@1.2.29 fxemoji@1.2.2 streamline-emojis@1.2.4 noto-v1@1.2.5 \
        fluent-emoji-high-contrast@1.2.5 emojione-v1@1.2.3 fluent-emoji-flat@1.2.6; do
        style_images "$icons" "$STATE/styles/${icons%@*}"
    done
    by_all_workers scripts/tasks.py --images "$STATE/styles" --state "$STATE/tasks"
}

ranking() {
    tasks
    style_images emojione@1.2.3 "$STATE/styles/emojione"
    by_all_workers scripts/ranking.py --images "$STATE/styles" --state "$STATE/tasks"
}

style_images() { # 300 images of an icon set, complete or absent
    if [ "$PYTHON" = echo ] || [ -d "$2" ]; then return; fi
    has resvg_py
    rm -rf "$2.part"
    $PYTHON scripts/tiny_base/draw_style.py --state "$STATE/tiny_base" --icons "$1" --output "$2.part" --number 300
    mv "$2.part" "$2"
}

by_all_workers() { # one script that shares its runs with others of its kind
    local code=0
    for _ in $(seq "$WORKERS"); do
        $PYTHON "$@" &
        workers+=($!)
    done
    for worker in "${workers[@]}"; do wait "$worker" || code=$?; done
    workers=()
    return $code
}

[ $# -gt 0 ] || fail "name experiments: style, k, heads, dreambooth, gora, outliers, k_by_layer, tasks, ranking"
for experiment in "$@"; do
    case $experiment in
    style | k | heads | dreambooth | gora | outliers | k_by_layer | tasks | ranking) ;;
    *) fail "no experiment is called $experiment; there are style, k, heads, dreambooth, gora, outliers, k_by_layer, tasks and ranking" ;;
    esac
done
has matplotlib
for experiment in "$@"; do "$experiment"; done
