#!/usr/bin/env bash
# Entry point: set-up, demo, tests, and each stage of a distillation. See ./run.sh --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(realpath -m -- "${VENV:-$root/.venv}")

usage() {
    cat <<'TXT'
Usage: ./run.sh [VERB] [ARGUMENTS]        (no verb: demo)

  demo                      the whole pipeline once, with a real teacher and real text: fetch, prep, distill, resume,
                            export, report (3 to 5 minutes)
  demo-multilingual         the same with XLM-R's vocabulary, on 99 languages, reported by language
  test [PYTEST ARGUMENTS]   the test suite; test -m "not slow": its quick part, under 2 minutes
  prep VERB …               text to token shards: plan, prepare, status, verify, stats, extend, pack, push,
                            templates, bench                                 (python -m data_prep)
  show RECIPE | DATA        what a model will read: the first samples, decoded   (python -m pipeline.show)
  distill RECIPE [key=value …] [--hostfile FILE]
                            train a student on this machine, one process per GPU, or RANKS on a CPU, or on the hosts of
                            a file; ./run.sh distill --help shows every way  (python -m pipeline.launch)
  recipe RECIPE [key=value …]
                            check a recipe and print what follows from it    (python -m pipeline.recipe)
  recipe --new FILE --teacher DIR --data DATA
                            write one that fits teacher, data and machine
  plan RECIPE --nodes N --gpus-per-node G --gpu NAME
                            estimate a run's memory, traffic, time and disk  (python -m pipeline.plan)
  doctor [--hostfile FILE]  check that this machine or these hosts are ready (python -m pipeline.doctor)
  export RUN_DIR OUT_DIR    the student as a Hugging Face folder             (python -m pipeline.export)
  trim-vocab MODEL --corpus DATA [--keep-languages de,en,…] --out OUT
                            remove vocabulary entries that your languages do not need
                                                                             (python -m pipeline.trim_vocab)
  evaluate --model DIR --task NAME[,NAME] --out DIR
                            fine-tune and score models: GLUE, SQuAD, XNLI, MLQA, XQuAD
                                                                             (python -m pipeline.evaluate)
  speed TEACHER STUDENT …   how much faster and smaller the students are     (python -m pipeline.speed)
  report RESULTS_DIR        scores next to the teacher's and the papers'     (python -m pipeline.report)
  report RUN_DIR STUDENT    sizes, speed-up, losses, relation maps of a run
  rehearse RECIPE           every command of a paper's recipe, from text to report, in small on this machine
                                                                             (python -m pipeline.rehearse)
  bench loss | step | data | teacher | finetune | kernel | all
                            where the time goes, on this machine             (python -m pipeline.bench)
  bench gpu                 all that only a GPU can show, in 8 minutes       (python -m pipeline.bench gpu)

The first use creates a virtual environment and installs the project into it. Variables:
  VENV     the virtual environment's folder (default: .venv next to this script)
  PYTHON   the Python 3.11+ that creates it (default: python3)
  RANKS    processes of `distill` on this machine (default: one per GPU, or 1 without a GPU)
TXT
}

die() {
    echo "error: $1" >&2
    exit 2
}

# The environment is whole once it holds the mark of this pyproject.toml; a half-made one is completed.
set_up() {
    unset PYTHONPATH PYTHONHOME
    export PYTHONNOUSERSITE=1 TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
    # What libraries keep for themselves stays below this folder.
    export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$root/.cache/torch_extensions}
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$root/.cache/torchinductor}
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$root/.cache/triton}
    export MPLCONFIGDIR=${MPLCONFIGDIR:-$root/.cache/matplotlib}
    unset PYTHONDONTWRITEBYTECODE # or each process of each launch compiles every module again
    local mark
    mark=$venv/.installed-$(cksum <"$root/pyproject.toml" | cut -d ' ' -f 1)
    if [ ! -e "$mark" ]; then
        local python=${PYTHON:-python3}
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            die "$python is not Python 3.11 or newer; name one with PYTHON=/path/to/python3.11"
        echo "Making the environment $venv (once; a few minutes) ..." >&2
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable "${root}[test]"
        rm -f "$venv"/.installed-*
        touch "$mark"
    fi
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
}

say() {
    printf '\n== %s\n' "$1"
}

# Two ranks, but one on a machine with a single GPU. Killing this script ends the run that it started.
begin_demo() {
    cd "$root"
    export DISTILL_PARENT=$$ RANKS=2 DISTILL_DOOR=./run.sh
    python -c 'import sys, torch; sys.exit(torch.cuda.device_count() == 1)' || RANKS=1
}

demo() {
    begin_demo
    say "1/7 The teacher all-MiniLM-L6-v2 and a sample of the English Wikipedia"
    python -m pipeline.assets .cache/demo
    say "2/7 Wikipedia text to token shards"
    python -m data_prep prepare --out data/demo --tokenizer .cache/demo/teacher --workers 2 --unit-mib 1 --heldout 0.05 \
        --source wikipedia=wikipedia:.cache/demo/enwiki-sample.xml.bz2
    python -m data_prep verify data/demo --deep
    say "3/7 Distillation: a ZeRO-3 teacher and a ZeRO-1 student, first half ($RANKS processes)"
    python -m pipeline.launch demo --stop-at 60
    say "4/7 The same run, resumed from its checkpoint"
    python -m pipeline.launch demo
    say "5/7 The student as a Hugging Face folder, and the student before its first step"
    python -m pipeline.export runs/demo runs/demo-student
    [ -e runs/demo-start ] || python -m pipeline.export --untrained demo runs/demo-start
    say "6/7 Scores without fine-tuning: news documents whose similarities people have judged"
    python -m pipeline.evaluate --model .cache/demo/teacher --model runs/demo-start --model runs/demo-student --task lee \
        --out runs/demo/scores
    say "7/7 Report (runs/demo/report.md, runs/demo/relations.png)"
    python -m pipeline.report runs/demo runs/demo-student --scores runs/demo/scores
}

demo_multilingual() {
    begin_demo
    say "1/6 The teacher multilingual-e5-small and short texts in 99 languages"
    python -m pipeline.multilingual .cache/demo-multilingual
    say "2/6 Texts to token shards, a source for each language"
    local file sources=()
    for file in .cache/demo-multilingual/text/*.txt.xz; do
        sources+=(--source "$(basename "$file" .txt.xz)=cc100:$file")
    done
    python -m data_prep prepare --out data/demo_multilingual --tokenizer .cache/demo-multilingual/teacher --workers 2 \
        --unit-mib 1 --heldout 0.05 "${sources[@]}"
    say "3/6 Distillation: a ZeRO-3 teacher and a ZeRO-1 student ($RANKS processes)"
    python -m pipeline.launch demo_multilingual
    say "4/6 The student as a Hugging Face folder, and the student before its first step"
    python -m pipeline.export runs/demo_multilingual runs/demo_multilingual-student
    local start=runs/demo_multilingual-start
    [ -e "$start" ] || python -m pipeline.export --untrained demo_multilingual "$start"
    say "5/6 Scores without fine-tuning: translations of held-out messages, found among all others"
    python -m pipeline.evaluate --model .cache/demo-multilingual/teacher --model "$start" \
        --model runs/demo_multilingual-student --task bitext --data .cache/demo-multilingual/parallel --prefix "query: " \
        --out runs/demo_multilingual/scores
    say "6/6 Report by language (runs/demo_multilingual/report.md)"
    python -m pipeline.report runs/demo_multilingual runs/demo_multilingual-student --scores runs/demo_multilingual/scores
}

verb=${1:-demo}
[ $# -eq 0 ] || shift
case $verb in
    -h | --help | help)
        usage
        ;;
    demo)
        [ $# -eq 0 ] || die "demo takes no arguments; see ./run.sh --help"
        set_up
        demo
        ;;
    demo-multilingual)
        [ $# -eq 0 ] || die "demo-multilingual takes no arguments; see ./run.sh --help"
        set_up
        demo_multilingual
        ;;
    test)
        set_up
        cd "$root"
        if [ $# -eq 0 ] || [ "$1" = -m ]; then # processes of a launch wait for each other much of the time
            set -- -n 4 --dist loadfile --no-loadscope-reorder "$@"
            export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        fi
        exec python -m pytest "$@"
        ;;
    distill)
        export DISTILL_DOOR=$0 # what messages call the commands by
        [ $# -gt 0 ] || die "distill needs a recipe: ./run.sh distill RECIPE [key=value …]"
        set_up
        exec python -m pipeline distill "$@"
        ;;
    prep | show | recipe | plan | doctor | export | trim-vocab | evaluate | speed | report | rehearse | bench)
        export DISTILL_DOOR=$0
        set_up
        exec python -m pipeline "$verb" "$@"
        ;;
    *)
        die "unknown verb '$verb'; ./run.sh --help lists them"
        ;;
esac
