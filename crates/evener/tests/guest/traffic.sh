#!/bin/sh
# Traffic through the program's services: NAT, direct routing and tunnels, IPv4 and IPv6, while servers and the program
# itself end. Runs in the VM of `cargo xtask guest`; $EVENER is the program.
. ./lib.sh
for module in ipip fou ip_gre; do modprobe $module; done

# The client `far` gets responses through the balancer (NAT). The client `near` is on the network of the servers a, b and c,
# which send it responses directly.
$ip link add br0 type bridge
echo 0 > /proc/sys/net/ipv6/conf/br0/accept_dad
$ip addr add 10.2.0.1/24 dev br0; $ip addr add 2001:db8:2::1/64 dev br0
$ip link set br0 up
space far to-far
echo 0 > /proc/sys/net/ipv6/conf/to-far/accept_dad
$ip addr add 10.1.0.1/24 dev to-far; $ip addr add 2001:db8:1::1/64 dev to-far nodad
$ip -n far addr add 10.1.0.2/24 dev eth0; $ip -n far route add default via 10.1.0.1
$ip -n far addr add 2001:db8:1::2/64 dev eth0 nodad; $ip -n far route add default via 2001:db8:1::1
number=2
for name in a b c near; do
    space $name to-$name
    $ip link set to-$name master br0
    $ip -n $name addr add 10.2.0.$number/24 dev eth0; $ip -n $name route add default via 10.2.0.1
    $ip -n $name addr add 2001:db8:2::$number/64 dev eth0 nodad; $ip -n $name route add default via 2001:db8:2::1
    number=$((number + 1))
done
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
# As the program advises. Otherwise a port that a client uses again can lead to a server that was removed.
expire=/proc/sys/net/ipv4/vs/expire_nodest_conn
echo 1 > $expire

# The virtual addresses: 1 NAT, 2 direct, 3 ipip, 4 gue, 5 gre, 6 by a firewall mark.
for last in 1 2 3 4 5 6; do $ip addr add 192.0.2.$last/32 dev lo; done
for last in 1 2; do $ip addr add 2001:db8:9::$last/128 dev lo nodad; done
for name in a b c; do
    for last in 2 3 4 5; do $ip -n $name addr add 192.0.2.$last/32 dev lo; done
    $ip -n $name addr add 2001:db8:9::2/128 dev lo nodad
    $ip -n $name link set tunl0 up
    $ip -n $name link set gre0 up
    $ip -n $name fou add port 6080 gue
    serve $name
done

servers='"10.2.0.2:80", "10.2.0.3:80", { "10.2.0.4:80", tier = 2 }'
servers6='"[2001:db8:2::2]:80", "[2001:db8:2::3]:80", { "[2001:db8:2::4]:80", tier = 2 }'
check='check = check.http { port = 80, path = "/", every = "1s", timeout = "3s", fall = 1, rise = 1 }, on_down = "close"'
service() { echo "service \"$1\" { plane = \"ipvs\", $2, $check }"; }
{
    service 192.0.2.1:80 "$servers"
    service 192.0.2.2:80 "forward = \"direct\", $servers"
    service 192.0.2.3:80 "forward = \"ipip\", $servers"
    service 192.0.2.4:80 "forward = \"gue\", tunnel = { port = 6080 }, $servers"
    service 192.0.2.5:80 "forward = \"gre\", $servers"
    service marked "fwmark = 7, $(echo "$servers" | sed 's/:80//g')"
    service "[2001:db8:9::1]:80" "$servers6"
    service "[2001:db8:9::2]:80" "forward = \"direct\", $servers6"
} > c.lua
nft add table ip marks
nft add chain ip marks incoming '{ type filter hook prerouting priority mangle; }'
nft add rule ip marks incoming ip daddr 192.0.2.6 tcp dport 80 meta mark set 7

# Waits until each service has these servers, and no others: `serving NAME LAST-NUMBERS`.
are_serving() {
    for last in $numbers; do
        [ "$(ipvsadm -Sn | grep -c -e "-r 10.2.0.$last:80 .*-w 1")" = 5 ] || return 1
        ipvsadm -Sn | grep -q -e "-f 7 -r 10.2.0.$last:0 .*-w 1" || return 1
        [ "$(ipvsadm -Sn | grep -c -e "-r \[2001:db8:2::$last\]:80 .*-w 1")" = 2 ] || return 1
    done
    [ "$(ipvsadm -Sn | grep -c -e '-w 1')" = $(($(echo $numbers | wc -w) * 8)) ]
}
serving() { numbers=$2; eventually "$1" are_serving; }

# Each service shares ten requests equally: `balanced NAME EXPECTED`.
balanced() {
    same "$1: NAT" "$(ask far 192.0.2.1:80 10)" "$2"
    same "$1: direct routing" "$(ask near 192.0.2.2:80 10)" "$2"
    same "$1: IPIP tunnel" "$(ask near 192.0.2.3:80 10)" "$2"
    same "$1: GUE tunnel" "$(ask near 192.0.2.4:80 10)" "$2"
    same "$1: GRE tunnel" "$(ask near 192.0.2.5:80 10)" "$2"
    same "$1: firewall mark" "$(ask far 192.0.2.6:80 10)" "$2"
    same "$1: NAT of IPv6" "$(ask far '[2001:db8:9::1]:80' 10)" "$2"
    same "$1: direct routing of IPv6" "$(ask near '[2001:db8:9::2]:80' 10)" "$2"
}

start
serving "the table has the services" "2 3"
ipvsadm -Ln
balanced "two servers" "a=5 b=5 failed=0"

kill -9 $server_b
serving "a killed server leaves" "2"
balanced "one is killed" "a=10 failed=0"
kill -9 $server_a
serving "the next one leaves and the third one comes" "4"
balanced "two are killed" "c=10 failed=0"
same "a client of the third server by NAT" "$(ask far 192.0.2.1:80 1 0 5555)" "c=1 failed=0"
same "a client of the third server by direct routing" "$(ask near 192.0.2.2:80 1 0 5555)" "c=1 failed=0"
serve a; serve b
serving "the servers are back" "2 3"
balanced "they are back" "a=5 b=5 failed=0"

# The third server drains. Responses by direct routing do not pass the kernel, so it does not see that a connection has ended.
again() { ask near 192.0.2.2:80 1 0 5555; }
echo 0 > $expire
same "NAT: the port gets another server" "$(ask far 192.0.2.1:80 1 0 5555 | sed 's/[ab]=1/a or b/')" "a or b failed=0"
same "direct routing: the port keeps the server that drains" "$(again)" "c=1 failed=0"
echo 1 > $expire
same "direct routing, with the advised value: another server" "$(again | sed 's/[ab]=1/a or b/')" "a or b failed=0"

# Requests go on while the program is killed and starts again.
ask far 192.0.2.1:80 400 25 > load-nat & load_nat=$!
ask near 192.0.2.2:80 400 25 > load-direct & load_direct=$!
sleep 2
stop -9
sleep 2
serving "the table outlives the process" "2 3"
start
has_started_again() { [ "$(grep -c ' started ' $log)" = 2 ]; }
eventually "the program is back" has_started_again
wait $load_nat; wait $load_direct
for way in nat direct; do
    echo "$way: $(cat load-$way)"
    # A source port that is used again has its old server.
    same "kill -9 and a restart under load, $way" "$(sed 's/[ab]=[0-9]*/served/g' load-$way)" "served served failed=0"
done
serving "the table is as before" "2 3"
stop -TERM
end
