# Functions of the scripts that test the program in the VM of `cargo xtask guest`. $EVENER is the program. Each script
# runs in a network namespace of its own.
set -u
modprobe ip_vs
failed=0
# The shell would run the program of busybox.
ip=/usr/sbin/ip
log=/job/log
: >$log
$ip link set lo up

fail() {
    echo "FAILED: $*"
    echo "--- ipvsadm -Sn"; ipvsadm -Sn; echo "--- log"; grep -v "^request" $log | tail -n 40
    failed=1
}

# Seconds since the VM booted.
seconds() { cut -d. -f1 /proc/uptime; }

# Waits until a command succeeds: `eventually NAME COMMAND`.
eventually() {
    name=$1; shift
    deadline=$(($(seconds) + 60))
    until "$@"; do
        [ "$(seconds)" -ge $deadline ] && { fail "$name"; return 1; }
        sleep 0.1
    done
    echo "ok: $name"
}

saved() { ipvsadm -Sn | sed 's/ *$//' | sort; }

is_saved() { [ "$(saved)" = "$want" ]; }

# Waits until the saved table is as expected: `expect NAME LINES`.
expect() {
    name=$1; shift
    want=$(printf '%s\n' "$@" | sort)
    eventually "$name" is_saved || { echo "--- expected"; echo "$want"; }
}

# Waits until the log has a text: `expect_log NAME TEXT`.
expect_log() { eventually "$1" grep -q -e "$2" $log; }

start() {
    $EVENER run /job/c.lua >>$log 2>&1 &
    pid=$!
}

stop() {
    kill "$1" "$pid"; wait "$pid" 2>/dev/null
}

# Adds a namespace that is linked to this one: `space NAME LINK`. IPv6 addresses can be used immediately.
space() {
    $ip netns add "$1"
    $ip link add "$2" type veth peer name eth0 netns "$1"
    $ip link set "$2" up
    $ip netns exec "$1" sh -c "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad"
    $ip -n "$1" link set lo up
    $ip -n "$1" link set eth0 up
}

# Starts the HTTP server of a namespace, which responds with the namespace's name.
serve() {
    $ip netns exec "$1" /job/peer serve "[::]:80" "$1" &
    eval "server_$1=$!"
    eventually "the server $1 listens" listens "$1" >/dev/null
}

listens() { $ip netns exec "$1" grep -q ":0050 " /proc/net/tcp6; }

# Sends requests from a namespace: `ask NAMESPACE ADDRESS COUNT [PAUSE [PORT]]`.
ask() {
    from=$1; shift
    $ip netns exec "$from" /job/peer ask "$@" 2>>$log
}

# Compares two texts: `same NAME FOUND EXPECTED`.
same() {
    if [ "$2" = "$3" ]; then echo "ok: $1 ($2)"; else fail "$1: '$2', expected '$3'"; fi
}

end() {
    for name in $($ip netns list | cut -d' ' -f1); do
        for process in $($ip netns pids "$name"); do kill "$process"; done
        $ip netns delete "$name"
    done
    [ $failed = 0 ] && echo "program: $0 ok"
    exit $failed
}
