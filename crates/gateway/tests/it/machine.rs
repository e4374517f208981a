//! Settings that demand more than the machine has: `check` and the start say so, at the key.

use portcullis_gateway::Machine;

use crate::configuration::{REST, problems_on};

const SMALL: Machine = Machine {
    cores: Some(2),
    descriptors: Some(20_000),
    local_ports: Some(28_232),
    memory: Some(4 << 30),
    group_memory: Some(2 << 30),
};

fn listeners(keys: [&str; 2], runtime: &str) -> String {
    let of = |name: &str, keys: &str| {
        let table = format!("[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n");
        format!("{table}protocol = \"tcp\"\nallow = [\"127.0.0.1\"]\n{keys}")
    };
    let upstream = format!("{REST}health = {{ mode = \"off\" }}\n");
    format!("{}{}{upstream}[runtime]\n{runtime}", of("a", keys[0]), of("b", keys[1]))
}

#[test]
fn what_the_machine_does_not_have_is_reported_at_its_key() {
    let warned = |keys, runtime: &str| problems_on(SMALL, &listeners(keys, runtime));
    let few = ["max_connections = 4000\n", "max_connections = 4000\n"];
    for (keys, runtime, caret, hint) in [
        (few, "worker_threads = 5\n", "20 | worker_threads = 5\n   |                  ^\n", "leave the key out"),
        (
            few,
            "memory_limit = \"3GiB\"\n",
            "20 | memory_limit = \"3GiB\"\n   |                ^^^^^^\n",
            "40 % of the memory at most",
        ),
        (
            ["max_connections = 4000\n", "max_connections = 6000\n"],
            "",
            "14 | max_connections = 6000\n   |                   ^^^^\n",
            "`LimitNOFILE=` of systemd",
        ),
    ] {
        let text = warned(keys, runtime);
        assert!(text.contains(caret) && text.contains(hint), "{text}");
        assert_eq!(text.matches("warning: ").count(), 1, "{text}");
    }
    let (threads, memory) = (warned(few, "worker_threads = 5\n"), warned(few, "memory_limit = \"3GiB\"\n"));
    assert!(threads.contains("warning: `worker_threads` is 5, on 2 cores"), "{threads}");
    let whose =
        "`memory_limit` is 3.0 GiB, more than the 2.0 GiB that its control group (container or service) may have";
    assert!(memory.contains(whose), "{memory}");
    let alone = problems_on(Machine { group_memory: None, ..SMALL }, &listeners(few, "memory_limit = \"5GiB\"\n"));
    assert!(alone.contains("`memory_limit` is 5.0 GiB, more than the 4.0 GiB that this machine has"), "{alone}");
    // 96 in reserve, 2 for the server, 2 sockets that listen, 16 for [admin], 4 for each of two threads.
    let descriptors = warned([few[0], "max_connections = 6000\n"], "worker_threads = 2\n");
    let text = "`max_connections` of all listeners, 10000, takes 20124 file descriptors; the hard limit here is 20000, enough for 9938 connections";
    assert!(descriptors.contains(text), "{descriptors}");

    let narrow = Machine { local_ports: Some(2000), ..SMALL };
    let ports = problems_on(narrow, &listeners(["max_connections = 1000\n", "max_connections = 1001\n"], ""));
    let text = "`max_connections` of all its listeners is 2001, but upstream \"brokers\" has one server, for which the 2000 local ports here allow 2000 sessions";
    let caret = "14 | max_connections = 1001\n   |                   ^^^^\n";
    assert!(ports.contains(text) && ports.contains(caret) && ports.contains("ip_local_port_range"), "{ports}");
    let enough = listeners(["max_connections = 1000\n", "max_connections = 1001\n"], "");
    let two = enough.replace("servers = [", "servers = [\"127.0.0.9:1883\", ");
    assert_ne!(two, enough);
    let named = enough.replace("servers = [", "servers = [\"brokers.test:1883\", ");
    for known_to_fit_or_unknown in [two, named] {
        assert_eq!(problems_on(narrow, &known_to_fit_or_unknown), "");
    }
}

#[test]
fn what_the_machine_has_and_what_the_file_does_not_set_is_not() {
    let most = ["max_connections = 4938\n", "max_connections = 5000\n"];
    for (machine, keys, runtime) in [
        (SMALL, most, "worker_threads = 2\n"),
        (SMALL, ["max_connections = 4000\n"; 2], "worker_threads = 4\nmemory_limit = \"2GiB\"\n"),
        // The defaults need more descriptors. The gateway's log says so when it starts.
        (SMALL, ["", ""], ""),
        (
            Machine::default(),
            ["max_connections = 4000000000\n", ""],
            "worker_threads = 1000\nmemory_limit = \"1TiB\"\n",
        ),
    ] {
        assert_eq!(problems_on(machine, &listeners(keys, runtime)), "", "{keys:?} {runtime}");
    }
}
