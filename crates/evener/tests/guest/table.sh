#!/bin/sh
# Each setting of services, destinations, daemons and timeouts, as ipvsadm shows it. Runs in the VM of
# `cargo xtask guest`; $EVENER is the program.
. ./lib.sh
$ip link add eth0 type dummy; $ip addr add 10.0.0.254/24 dev eth0; $ip link set eth0 up

# Writes a configuration and reads it: `configure LUA`.
configure() {
    printf '%s\n' "$1" > c.lua
    kill -HUP $pid
}

echo 'service "192.0.2.1:80" { plane = "ipvs", "10.0.0.1:80" }' > c.lua
start
expect "a service with a destination" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1"

configure '
service "192.0.2.1:80" { plane = "ipvs", { "10.0.0.1:80", weight = 3 }, policy = "weighted" }
service "u" { plane = "ipvs", listen = "192.0.2.1:53", protocol = "udp", "10.0.0.1:53", scheduler = "sed" }
service "s" { plane = "ipvs", listen = "192.0.2.1:2905", protocol = "sctp", "10.0.0.1:2905", scheduler = "lc" }
service "m" { plane = "ipvs", fwmark = 7, "10.0.0.1", "2001:db8::1", policy = "least_conn" }
service "six" { plane = "ipvs", listen = "[2001:db8::9]:80", "[2001:db8::1]:80", scheduler = "nq" }
'
expect "each protocol, a firewall mark of two families, a weight that changes live" \
    "-A -t 192.0.2.1:80 -s wrr" "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 3" \
    "-A -u 192.0.2.1:53 -s sed" "-a -u 192.0.2.1:53 -r 10.0.0.1:53 -m -w 1" \
    "-A --sctp-service 192.0.2.1:2905 -s lc" "-a --sctp-service 192.0.2.1:2905 -r 10.0.0.1:2905 -m -w 1" \
    "-A -f 7 -s wlc" "-a -f 7 -r 10.0.0.1:0 -m -w 1" \
    "-A -f 7 -6 -s wlc" "-a -f 7 -6 -r [2001:db8::1]:0 -m -w 1" \
    "-A -t [2001:db8::9]:80 -s nq" "-a -t [2001:db8::9]:80 -r [2001:db8::1]:80 -m -w 1"

configure '
service "d" { plane = "ipvs", listen = "192.0.2.1:80", forward = "direct", "10.0.0.1", policy = "hash", scheduler_flags = { "fallback", "port" } }
service "i" { plane = "ipvs", listen = "192.0.2.2:80", forward = "ipip", "10.0.0.1", policy = "maglev", scheduler_flags = "fallback" }
service "gue" { plane = "ipvs", listen = "192.0.2.3:80", forward = "gue", tunnel = { port = 6081 }, "10.0.0.1", policy = "maglev", scheduler_flags = "port" }
service "gre" { plane = "ipvs", listen = "192.0.2.4:80", forward = "gre", "10.0.0.1", scheduler = "sh" }
'
expect "each way of forwarding, and flags of schedulers" \
    "-A -t 192.0.2.1:80 -s sh -b sh-fallback,sh-port" "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g -w 1" \
    "-A -t 192.0.2.2:80 -s mh -b mh-fallback" "-a -t 192.0.2.2:80 -r 10.0.0.1:80 -i -w 1 --tun-type ipip" \
    "-A -t 192.0.2.3:80 -s mh -b mh-port" "-a -t 192.0.2.3:80 -r 10.0.0.1:80 -i -w 1 --tun-type gue --tun-port 6081 --tun-nocsum" \
    "-A -t 192.0.2.4:80 -s sh" "-a -t 192.0.2.4:80 -r 10.0.0.1:80 -i -w 1 --tun-type gre --tun-nocsum"

configure '
service "all" { plane = "ipvs", listen = "192.0.2.1", persistence = { timeout = "10min", v4 = 24 }, "10.0.0.1" }
service "six" { plane = "ipvs", listen = "[2001:db8::9]:80", persistence = { timeout = "5min", v6 = 64 }, "[2001:db8::1]:80" }
service "sip" { plane = "ipvs", listen = "192.0.2.1:5060", protocol = "udp", persistence = { timeout = "1min", engine = "sip" }, "10.0.0.1:5060" }
service "one" { plane = "ipvs", listen = "192.0.2.1:53", protocol = "udp", one_packet = true, forward = "direct", "10.0.0.1:53" }
'
expect "persistence with a netmask and an engine, one-packet scheduling, every port" \
    "-A -t 192.0.2.1:0 -s rr -p 600 -M 255.255.255.0" "-a -t 192.0.2.1:0 -r 10.0.0.1:0 -m -w 1" \
    "-A -t [2001:db8::9]:80 -s rr -p 300 -M 64" "-a -t [2001:db8::9]:80 -r [2001:db8::1]:80 -m -w 1" \
    "-A -u 192.0.2.1:5060 -s rr -p 60 --pe sip" "-a -u 192.0.2.1:5060 -r 10.0.0.1:5060 -m -w 1" \
    "-A -u 192.0.2.1:53 -s rr -o" "-a -u 192.0.2.1:53 -r 10.0.0.1:53 -g -w 1"

configure '
service "192.0.2.1:80" { plane = "ipvs", { "10.0.0.1:80", max = 80, hard = 100 }, { "10.0.0.2:80", max = 50 }, { "10.0.0.3:80", weight = 0 } }
'
thresholds() { ipvsadm -Ln --thresholds | grep -e '->' | grep -v Remote | awk '{ print $2, $3, $4 }' | sort | xargs; }
has_thresholds() { [ "$(thresholds)" = "10.0.0.1:80 100 80 10.0.0.2:80 50 0 10.0.0.3:80 0 0" ]; }
eventually "upper and lower thresholds" has_thresholds || thresholds
expect "a configured weight 0 is 0" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1" \
    "-a -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 1" "-a -t 192.0.2.1:80 -r 10.0.0.3:80 -m -w 0"

one='service "192.0.2.1:80" { plane = "ipvs", "10.0.0.1:80" }'
has() { eval "$1" | grep -q -e "$2"; }
configure "ipvs { timeouts = { tcp = \"15min\", tcp_fin = \"30s\", udp = \"20s\" }, sync = { role = \"both\", interface = \"eth0\", id = 7 } } $one"
eventually "timeouts" has "ipvsadm -Ln --timeout" "tcp tcpfin udp): 900 30 20"
eventually "the master of synchronization" has "ipvsadm -Ln --daemon" "master sync daemon (mcast=eth0, syncid=7"
eventually "the backup of synchronization" has "ipvsadm -Ln --daemon" "backup sync daemon (mcast=eth0, syncid=7"
configure "ipvs { sync = { role = \"master\", interface = \"eth0\", id = 8 } } $one"
eventually "another identity of the master" has "ipvsadm -Ln --daemon" "master sync daemon (mcast=eth0, syncid=8"
has_backup() { ipvsadm -Ln --daemon | grep -q backup; }
has_daemon() { ipvsadm -Ln --daemon | grep -q daemon; }
not() { ! "$@"; }
eventually "the backup has stopped" not has_backup
configure "$one"
eventually "no daemon runs" not has_daemon
eventually "timeouts stay" has "ipvsadm -Ln --timeout" "tcp tcpfin udp): 900 30 20"

# Statistics and lists of the program are those of ipvsadm, and its saved text restores the table.
$EVENER ipvs save > mine
expect "the table before it is restored" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1"
same "evener ipvs save" "$(sed 's/ *$//' mine | sort | xargs)" "$(saved | xargs)"
stop -TERM
ipvsadm -C; ipvsadm -R < mine
same "ipvsadm restores the saved text" "$($EVENER ipvs save)" "$(cat mine)"
$EVENER ipvs list; $EVENER ipvs stats

# A firewall mark, an unknown protocol and a way of forwarding that does not exist are errors.
refused() {
    printf '%s\n' "$2" > wrong.lua
    if $EVENER check wrong.lua > wrong 2>&1; then fail "$1 is accepted"; else
        grep -q "wrong.lua:[0-9]" wrong && echo "ok: $1 is refused: $(grep wrong.lua wrong | head -n 1)" || fail "$1: $(cat wrong)"
    fi
}
refused "a protocol that does not exist" 'service "192.0.2.1:80" { plane = "ipvs", protocol = "dccp", "10.0.0.1:80" }'
refused "a way of forwarding that does not exist" 'service "192.0.2.1:80" { plane = "ipvs", forward = "masq", "10.0.0.1:80" }'
refused "an unknown key" 'service "192.0.2.1:80" { plane = "ipvs", forwards = "nat", "10.0.0.1:80" }'
refused "a wrong scheduler" 'service "192.0.2.1:80" { plane = "ipvs", scheduler = "wllc", "10.0.0.1:80" }'
refused "a missing brace" 'service "192.0.2.1:80" { plane = "ipvs", "10.0.0.1:80"'
refused "a mark of 0" 'service "m" { plane = "ipvs", fwmark = 0, "10.0.0.1" }'

# Debian's kernel has no scheduler twos. This is found before anything changes.
before=$(saved)
echo "$one" > c.lua
: > $log
start
expect_log "the program is back" ' admin_listening '
expect "its table is as before" "-A -t 192.0.2.1:80 -s rr" "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1"
configure 'service "a" { plane = "ipvs", listen = "192.0.2.9:80", "10.0.0.9:80" }
service "b" { plane = "ipvs", listen = "192.0.2.1:80", scheduler = "twos", "10.0.0.1:80" }'
expect_log "a scheduler that the kernel does not have is refused" 'the kernel has no scheduler .*twos'
same "nothing has changed" "$(saved)" "$before"
stop -TERM
end
