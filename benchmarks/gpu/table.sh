# table.sh NAME ARGS...: rows of a table in the shared store, as one lane's work
. /tmp/kit/env.sh; cd /tmp/kit/tables; n=$1; shift
python3 -m bustseg.cli reproduce "$@" --resume --out /tmp/kit/tables/$n --data.root /tmp/kit/BUSI${SIZE:-224} --data.image_size ${SIZE:-224} --data.num_workers 0 --trainer.precision bf16-mixed --trainer.benchmark true --trainer.enable_progress_bar false
