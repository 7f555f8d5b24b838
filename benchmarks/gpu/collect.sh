# collect.sh: what is small, in one archive under $OUT
cd /tmp/kit; tar czf $OUT/figs.tgz --exclude='*.cmd' logs $(ls out/*.csv out/*.json tables/*/*.md tables/*/*.csv 2>/dev/null)
