#!/bin/sh
# How soon keepalived and the program notice that a server is gone, at the same time and with the same intervals. Runs in the
# VM of `cargo xtask guest --timing`; $EVENER is an optimised program.
. ./lib.sh
space a to-a
$ip addr add 10.0.1.254/24 dev to-a; $ip -n a addr add 10.0.1.1/24 dev eth0
for last in 1 2 3 4 5; do $ip addr add 192.0.2.$last/32 dev lo; done

cat > keepalived.conf <<'CONF'
global_defs {
  checker_log_all_failures false
}
virtual_server 192.0.2.1 80 {
  delay_loop 1
  lb_algo rr
  lb_kind NAT
  protocol TCP
  real_server 10.0.1.1 80 {
    TCP_CHECK {
      connect_timeout 1
      retry 1
      delay_before_retry 1
    }
  }
}
virtual_server 192.0.2.2 80 {
  delay_loop 1
  lb_algo rr
  lb_kind NAT
  protocol TCP
  real_server 10.0.1.1 80 {
    HTTP_GET {
      url {
        path /
        status_code 200
      }
      connect_timeout 1
      retry 1
      delay_before_retry 1
    }
  }
}
CONF
common='every = "1s", timeout = "1s", fall = 2, rise = 1'
cat > c.lua <<LUA
service "192.0.2.3:80" { plane = "ipvs", "10.0.1.1:80", check = check.tcp { $common } }
service "192.0.2.4:80" { plane = "ipvs", "10.0.1.1:80", check = check.http { path = "/", $common } }
service "192.0.2.5:80" { plane = "ipvs", "10.0.1.1:80", check = check.script { $common, run = function(server)
  return http.get("http://" .. server.address .. "/").ok
end } }
LUA

# The server ends, so that connections are refused.
cat > refuse <<'SH'
if [ $1 = down ]; then kill -9 $(cat server.pid); else
    /usr/sbin/ip netns exec a /job/peer serve "[::]:80" a & echo $! > server.pid
fi
SH
# The server drops all packets.
/usr/sbin/ip netns exec a nft add table ip t
/usr/sbin/ip netns exec a nft add chain ip t incoming '{ type filter hook input priority 0; }'
cat > silence <<'SH'
if [ $1 = down ]; then policy=drop; else policy=accept; fi
exec /usr/sbin/ip netns exec a nft "chain ip t incoming { policy $policy; }"
SH
sh ./refuse up
keepalived -f /job/keepalived.conf -C -n -l >keepalived.log 2>&1 & keepalived=$!
start
services="keepalived-TCP_CHECK=192.0.2.1:80 keepalived-HTTP_GET=192.0.2.2:80 evener-tcp=192.0.2.3:80 evener-http=192.0.2.4:80 evener-function=192.0.2.5:80"
for way in refuse silence; do
    echo "react: $way"
    ./peer react ${ROUNDS:-20} 1000 ./$way 10.0.1.1:80 $services || { fail "react"; tail keepalived.log; }
done
kill $keepalived; wait $keepalived
stop -TERM
end
