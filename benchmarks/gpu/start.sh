# start.sh study|table N: that many daemons
. /tmp/kit/env.sh; cd /tmp/kit; mkdir -p q/study q/table logs out tables
if [ $1 = study ]; then for i in $(seq 1 $2); do mkdir -p w$i; (cd w$i && setsid nohup python3 -m studies.cross_source.work ../q/study --data /tmp/kit/data --out /tmp/kit/out --workers 2 >> ../logs/w$i.log 2>&1 &) ; done
else for i in $(seq 1 $2); do (cd tables && setsid nohup bash ../lane.sh /tmp/kit/q/table /tmp/kit/logs/lanes >/dev/null 2>&1 &); done; fi
