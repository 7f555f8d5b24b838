#!/bin/bash
# runs the files of a folder of commands, one after another; several lanes share a folder
# usage: lane.sh QUEUE LOGS
mkdir -p $2
while [ ! -e $1/stop ]; do
  took=
  for f in $(ls $1/*.cmd 2>/dev/null); do
    if mv $f $f.$$ 2>/dev/null; then
      took=1; n=$(basename $f .cmd); s=$(date +%s)
      bash $f.$$ > $2/$n.log 2>&1; rc=$?
      echo "$n rc $rc $(( $(date +%s) - s )) s" >> $2/done.txt; mv $f.$$ $1/$n.rc$rc; break
    fi
  done
  [ -z "$took" ] && sleep 0.5
done
