# tables.sh: the tables' work, most valuable rows first
Q=/tmp/kit/q/table; mkdir -p $Q; n=10
add() { echo "bash /tmp/kit/table.sh $*" > $Q/$n-$1.cmd; n=$((n+1)); }
O="--table 1 --family offline"
for r in 1 7 3 2 8; do add off$r $O --only $r --seeds 0 1 2; done
add offt $O --only 4 19 20 --seeds 0
add offf $O --only 5 6 10 12 9 11 13 14 15 16 17 18 --seeds 0
for r in 1 7 3 2 8; do add scr$r --table 1 --encoder_weights none --only $r --seeds 0; done
for r in 1 2 3 4 5; do add five$r --table 5 --only $r --seeds 0; done
