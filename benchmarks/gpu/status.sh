cd /tmp/kit; echo "--- $(date +%T) load $(cut -d' ' -f1-3 /proc/loadavg) gpu $(nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader 2>/dev/null)"
echo "study: $(ls q/study/*.json 2>/dev/null | wc -l) waiting $(ls q/study/*.done 2>/dev/null | wc -l) done $(ls q/study/*.failed 2>/dev/null | wc -l) failed; tables: $(ls q/table/*.cmd 2>/dev/null | wc -l) waiting"
tail -8 logs/lanes/done.txt 2>/dev/null; grep -h "s fit" logs/w*.log 2>/dev/null | tail -${1:-9} | cut -c1-150
grep -h "failed" -A12 logs/w*.log 2>/dev/null | tail -6 | cut -c1-200
tail -qn 1 logs/lanes/*.log 2>/dev/null | cut -c1-120
