//! Functions of the configuration language.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &[""],
        name: "pool",
        kind: "pool \"NAME\" { servers, keys }",
        text: "Declares a pool of servers, and returns it for the key `pool` of a service.",
        example: "local web = pool \"web\" { \"10.0.0.1:80\", \"10.0.0.2:80\", policy = \
                  \"least_conn\" }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "service",
        kind: "service \"NAME\" { keys }",
        text: "Declares a service: where it listens, and its pool or its own list of servers.",
        example: "service \"www\" { listen = \"0.0.0.0:80\", protocol = \"http\", \"10.0.0.1:80\", \
                  \"10.0.0.2:80\" }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "admin",
        kind: "admin { keys }",
        text: "Settings of the admin API: an address beside the admin socket, and the state file.",
        example: "admin { state_file = \"/var/lib/evener/www.json\" }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "ipvs",
        kind: "ipvs { keys }",
        text: "Settings of the IPVS plane, for services with `plane = \"ipvs\"`.",
        example: "ipvs { own_table = true }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "xdp",
        kind: "xdp { keys }",
        text: "Settings of the XDP plane, for services with `plane = \"xdp\"`.",
        example: "xdp { flows = 4000000 }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "server",
        kind: "server \"ADDRESS\" { keys }",
        text: "A server of a pool, as `{ \"ADDRESS\", keys }`. The braces are optional.",
        example: "pool \"web\" { server \"10.0.0.1:80\" { weight = 2 } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.tcp",
        kind: "check.tcp { keys }",
        text: "A check that passes when the connection is accepted, and the response is as expected.",
        example: "pool \"web\" { \"10.0.0.1:80\", check = check.tcp { every = \"2s\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.tls",
        kind: "check.tls { keys }",
        text: "A check that passes when the TLS handshake completes, and the response is as \
               expected.",
        example: "pool \"web\" { \"10.0.0.1:443\", check = check.tls { sni = \"app.example.org\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.http",
        kind: "check.http { keys }",
        text: "A check that passes when the response of HTTP has one of the statuses.",
        example: "pool \"web\" { \"10.0.0.1:80\", check = check.http { path = \"/health\", every = \
                  \"2s\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.https",
        kind: "check.https { keys }",
        text: "A check as `check.http`, over TLS.",
        example: "pool \"web\" { \"10.0.0.1:443\", check = check.https { path = \"/health\", verify \
                  = false } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.udp",
        kind: "check.udp { keys }",
        text: "A check that passes when a datagram gets the expected response.",
        example: "pool \"log\" { \"10.0.0.1:514\", check = check.udp { send = \"ping\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.dns",
        kind: "check.dns { keys }",
        text: "A check that passes when a DNS query gets a response, or the given RCODE.",
        example: "pool \"dns\" { \"10.0.0.1:53\", check = check.dns { name = \"example.org\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.script",
        kind: "check.script { keys }",
        text: "A check by a function. `check = function(server, pool) ... end` has the defaults.",
        example: "pool \"web\" { \"10.0.0.1:80\", check = check.script { every = \"1s\", run = \
                  function(server) return http.get(\"http://\" .. server.address).ok end } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "every",
        kind: "every(\"INTERVAL\", function)",
        text: "Runs a function at an interval while the instance runs.",
        example: "every(\"10s\", function() log.info(\"still there\") end)",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "on",
        kind: "on(\"EVENT\", function)",
        text: "Runs a function when an event of the log happens.",
        example: "on(\"server_down\", function(event) log.warn(event.server, event.reason) end)",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "exec",
        kind: "exec { allow = { \"PROGRAM\" } }",
        text: "Allows these programs in `check.exec`, `notify` and `exec(\"PROGRAM\")` of functions.",
        example: "exec { allow = { \"/usr/bin/true\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.exec",
        kind: "check.exec { \"PROGRAM\", \"ARGUMENT\", keys }",
        text: "A check that passes when a program ends with the status 0.",
        example: "exec { allow = { \"/usr/bin/true\" } } pool \"web\" { \"10.0.0.1:80\", check = check.exec { \"/usr/bin/true\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "check.smtp",
        kind: "check.smtp { keys }",
        text: "A check that passes when an SMTP server accepts EHLO or HELO.",
        example: "pool \"mail\" { \"10.0.0.1:25\", check = check.smtp { helo = \"lb.example.org\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "discover.file",
        kind: "discover.file \"FILE\" { keys }",
        text: "The addresses in a file are servers of the pool. The file is read again when it \
               changes.",
        example: "pool \"web\" { discover.file \"servers.txt\" { port = 80 } }",
        section: "#names-and-sources-of-servers",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "discover.dns",
        kind: "discover.dns \"NAME:PORT\" { keys }",
        text: "Each address of the name is a server of the pool. The name is resolved again when its \
               records expire.",
        example: "pool \"web\" { discover.dns \"app.example:80\" { max = 100 } }",
        section: "#names-and-sources-of-servers",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "discover.srv",
        kind: "discover.srv \"NAME\" { keys }",
        text: "The targets of the SRV records are servers of the pool.",
        example: "pool \"web\" { discover.srv \"_http._tcp.example.org\" }",
        section: "#names-and-sources-of-servers",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "policy.ewma",
        kind: "policy.ewma { keys }",
        text: "The policy `\"ewma\"` with keys: the faster of two random servers.",
        example: "pool \"web\" { \"10.0.0.1:80\", policy = policy.ewma { decay = \"10s\" } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "policy.maglev",
        kind: "policy.maglev { keys }",
        text: "The policy `\"maglev\"` with keys: by the client's address through a table.",
        example: "pool \"web\" { \"10.0.0.1:80\", policy = policy.maglev { table = 65537 } }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "prefixes",
        kind: "prefixes \"FILE\"",
        text: "The prefixes in a file, one for each line; `#` begins a comment. For `allow`, `deny`, \
               `access`, `proxy_from` and `trust`.",
        example: "service \"www\" { listen = \"0.0.0.0:80\", \"10.0.0.1:80\", deny = prefixes \
                  \"bad.txt\" }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "country",
        kind: "country \"CODE\"",
        text: "The networks of a country, by its code (ISO 3166-1). Needs `geoip` above it.",
        example: "geoip \"GeoLite2-Country.mmdb\"  service \"www\" { listen = \"0.0.0.0:80\", \
                  \"10.0.0.1:80\", deny = country \"SE\" }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "geoip",
        kind: "geoip \"FILE\"",
        text: "The database of the networks of countries, for `country`.",
        example: "geoip \"GeoLite2-Country.mmdb\"",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "include",
        kind: "include \"FILE\"",
        text: "Runs another file, relative to the file that includes it.",
        example: "include \"pools.lua\"",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "env",
        kind: "env(\"NAME\", default)",
        text: "A variable of the environment, as text. Without a default, a variable that is not set \
               is an error; the default `false` gives nil.",
        example: "service \"www\" { listen = \"0.0.0.0:\" .. env(\"PORT\", \"8080\"), \
                  \"10.0.0.1:80\" }",
        ..Key::NONE
    },
    Key {
        tables: &[""],
        name: "print",
        kind: "print(values)",
        text: "Writes to standard error, with file and line.",
        example: "print(\"pools:\", 3)",
        ..Key::NONE
    },
];
