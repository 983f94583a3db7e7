#!/bin/sh
# CPU time to set 2000 destinations, and to change one of them. Runs in the VM of `cargo xtask guest --timing`; $EVENER is an
# optimised program.
. ./lib.sh
ticks() { awk '{ print $14 + $15 }' /proc/$pid/stat; }
# Writes a configuration in which one of 2000 destinations has this weight.
config() {
    {
        echo 'service "192.0.2.1:80" { plane = "ipvs", policy = "weighted",'
        awk -v weight="$1" 'BEGIN { for (n = 0; n < 2000; n++)
            printf "{ \"10.1.%d.%d:80\", weight = %d },\n", n / 250, n % 250 + 1, n == 1234 ? weight : 1 }'
        echo '}'
    } > c.lua
}
is_complete() { [ "$(ipvsadm -Sn | grep -c -e '-a ')" = 2000 ]; }
is_changed() { ipvsadm -Sn | grep -q -e '-r 10.1.4.235:80 -m -w 5'; }

# Sets the same destinations with ipvsadm, for comparison.
awk 'BEGIN { print "-A -t 192.0.2.1:80 -s wrr"; for (n = 0; n < 2000; n++)
    printf "-a -t 192.0.2.1:80 -r 10.1.%d.%d:80 -m -w 1\n", n / 250, n % 250 + 1 }' > rules
echo "ipvsadm -R, 2000 destinations:"; time ipvsadm -R < rules
ipvsadm -C

config 1
echo "evener check, the file of 2000 destinations:"; time $EVENER check c.lua >/dev/null
echo 'service "192.0.2.1:80" { plane = "ipvs", { "10.1.0.1:80" }, policy = "weighted" }' > c.lua
start
expect "the program is ready" "-A -t 192.0.2.1:80 -s wrr" "-a -t 192.0.2.1:80 -r 10.1.0.1:80 -m -w 1"
sleep 1
config 1
before=$(ticks); kill -HUP $pid
eventually "2000 destinations are set" is_complete
sleep 1.5
after=$(ticks)
echo "load: $(((after - before) * 10)) ms of CPU to read the file and to set 1999 destinations"
before=$(ticks); sleep 10; after=$(ticks)
echo "load: $((after - before)) ms of CPU a second at rest"
config 5
before=$(ticks); kill -HUP $pid
eventually "one of 2000 destinations is changed" is_changed
sleep 1.5
after=$(ticks)
echo "load: $(((after - before) * 10)) ms of CPU to read the file and to change one destination"
stop -TERM
end
