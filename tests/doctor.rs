//! `umm doctor`: what it says of a made-up machine, of one whose files are missing or nonsense, and of this one.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::logs::folder;
use umm::doctor::parse::{self, Limit};
use umm::doctor::system::SystemFacts;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");

/// Texts in which no parser may find anything.
const GARBAGE: [&str; 12] = [
    "",
    "\n\n",
    ":",
    "::::",
    "[",
    "[]",
    "-1",
    "18446744073709551616",
    "NaN inf",
    "99999999999999999999-1,2",
    "0::",
    "\u{fffd}\u{0}\u{7f}",
];

#[test]
fn parsers_read_what_kernels_write() {
    let cpuinfo = "processor\t: 0\nmodel name\t: A Processor @ 3:1\n\nprocessor\t: 1\nmodel name\t: A Processor\n";
    assert_eq!(
        parse::processor(cpuinfo).as_deref(),
        Some("A Processor @ 3:1")
    );
    assert_eq!(parse::cores(cpuinfo), Some(2));
    let arm = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
    let name = parse::processor(arm);
    assert_eq!(name.as_deref(), Some("implementer 0x41, part 0xd0c"));

    let meminfo = "MemTotal:       24676 kB\nMemFree:            1 kB\nMemAvailable:    2000 kB\n";
    assert_eq!(
        parse::memory_bytes(meminfo, "MemTotal"),
        Some(24_676 * 1024)
    );
    assert_eq!(
        parse::memory_bytes(meminfo, "MemAvailable"),
        Some(2000 * 1024)
    );
    assert_eq!(parse::memory_bytes(meminfo, "Mem"), None);

    assert_eq!(parse::core_list("0-2,7,9-9\n"), Some(vec![0, 1, 2, 7, 9]));
    assert_eq!(parse::core_list("\n"), Some(vec![]));
    assert_eq!(parse::chosen("always [madvise] never\n"), Some("madvise"));

    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                  Max locked memory         8388608              unlimited            bytes     \n\
                  Max address space         unlimited            unlimited            bytes     \n";
    assert_eq!(
        parse::soft_limit(limits, "Max locked memory"),
        Some(Limit::Bytes(8_388_608))
    );
    assert_eq!(
        parse::soft_limit(limits, "Max address space"),
        Some(Limit::Unlimited)
    );
    let status = "Name:\tumm\nCapEff:\t0000000000804000\n";
    assert_eq!(parse::capabilities(status), Some(0x80_4000));
    assert_eq!(
        parse::load_average("0.52 0.58 0.59 1/467 12345\n"),
        Some(0.52)
    );
}

#[test]
fn parsers_read_both_versions_of_control_groups() {
    let first = "12:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n0::/\n";
    assert_eq!(parse::group(first, "cpu"), Some("/docker/ab"));
    assert_eq!(parse::group(first, "cpuset"), None);
    let second = "0::/system.slice/umm.service\n";
    assert_eq!(parse::group(second, ""), Some("/system.slice/umm.service"));
    assert_eq!(parse::group("0::/../../x\n", ""), Some("/"));
    assert_eq!(parse::group("0::etc/passwd\n", ""), Some("/"));
    assert_eq!(parse::quota_cores("150000 100000\n"), Some(1.5));
    assert_eq!(parse::quota_cores("max 100000\n"), None);
    assert_eq!(parse::quota_cores("100000 0\n"), None);
    assert_eq!(parse::quota("-1\n", "100000\n"), None);
    let stat = "usage_usec 5\nnr_periods 9\nnr_throttled 3\n";
    assert_eq!(parse::counter(stat, "nr_throttled"), Some(3));
    assert_eq!(parse::counter(stat, "nr"), None);
}

#[test]
fn parsers_take_garbage_for_nothing() {
    for text in GARBAGE {
        assert_eq!(parse::processor(text), None, "{text:?}");
        assert_eq!(parse::cores(text), None, "{text:?}");
        assert_eq!(parse::memory_bytes(text, ""), None, "{text:?}");
        assert_eq!(parse::chosen(text), None, "{text:?}");
        assert_eq!(parse::soft_limit(text, "Max locked memory"), None);
        assert_eq!(parse::capabilities(text), None, "{text:?}");
        assert_eq!(parse::quota_cores(text), None, "{text:?}");
        assert_eq!(parse::quota(text, text), None, "{text:?}");
        assert_eq!(parse::counter(text, "nr_throttled"), None, "{text:?}");
        assert_eq!(parse::load_average(text), None, "{text:?}");
    }
    for text in [
        "3-1",
        "a",
        "1,b",
        "0-99999999999",
        "0-16384",
        "-",
        "-1",
        "1-",
    ] {
        assert_eq!(parse::core_list(text), None, "{text:?}");
    }
    // A list that names the same cores over and over is refused.
    assert_eq!(parse::core_list(&"0-16383,".repeat(3)), None);
    assert_eq!(
        parse::memory_bytes("MemTotal: 18446744073709551615 kB", "MemTotal"),
        None
    );
    assert_eq!(parse::memory_bytes("MemTotal: 5 MB", "MemTotal"), None);
    assert_eq!(parse::load_average("-1 0 0"), None);
}

/// Writes these files below a root of the test's own.
fn machine(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let root = folder(name);
    for (path, text) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

#[test]
fn a_made_up_machine_is_read_from_its_files() {
    let root = machine(
        "doctor_machine",
        &[
            ("proc/cpuinfo", "processor : 0\nmodel name : Fast One\n"),
            ("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 50 kB\n"),
            ("proc/loadavg", "1.50 1 1 1/2 3\n"),
            ("proc/self/cgroup", "0::/a/b\n"),
            (
                "proc/self/limits",
                "Max locked memory  65536  65536  bytes\n",
            ),
            ("proc/self/status", "CapEff:\t4000\n"),
            ("proc/sys/kernel/sched_rt_runtime_us", "950000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "300000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.stat", "nr_throttled 7\n"),
            ("sys/fs/cgroup/a/cpu.max", "50000 100000\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("sys/devices/system/cpu/isolated", "2-3\n"),
            (
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                "powersave\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
                "powersave\n",
            ),
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always madvise [never]\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "12\n",
            ),
            (
                "sys/devices/system/clocksource/clocksource0/current_clocksource",
                "hpet\n",
            ),
            ("sys/kernel/realtime", "1\n"),
        ],
    );
    let facts = SystemFacts::read(&root);
    let expected = SystemFacts {
        processor: Some("Fast One".to_owned()),
        cores: Some(1),
        isolated_cores: Some(vec![2, 3]),
        memory_total_bytes: Some(102_400),
        memory_available_bytes: Some(51_200),
        transparent_huge_pages: Some("never".to_owned()),
        free_huge_pages: Some(12),
        frequency_governors: [("powersave".to_owned(), 2)].into(),
        clock_source: Some("hpet".to_owned()),
        realtime_kernel: true,
        realtime_runtime_us: Some(950_000),
        // The least of its own group's quota and of those above.
        cpu_quota_cores: Some(0.5),
        throttled_periods: Some(7),
        load_average: Some(1.5),
        memory_lock_limit: Some(Limit::Bytes(65_536)),
        capabilities: 0x4000,
    };
    assert_eq!(facts, expected);
}

#[test]
fn a_container_of_the_first_version_sees_its_own_part_as_the_root() {
    let root = machine(
        "doctor_cgroup",
        &[
            ("proc/self/cgroup", "4:cpu,cpuacct:/docker/ab\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.stat", "nr_throttled 2\n"),
        ],
    );
    let facts = SystemFacts::read(&root);
    assert_eq!(facts.cpu_quota_cores, Some(2.0));
    assert_eq!(facts.throttled_periods, Some(2));
}

#[test]
fn a_machine_that_says_nothing_or_nonsense_is_no_failure() {
    let nothing = SystemFacts::read(&folder("doctor_nothing"));
    assert_eq!(nothing, SystemFacts::default());
    let files = [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/loadavg",
        "proc/self/cgroup",
        "proc/self/limits",
        "proc/self/status",
        "sys/fs/cgroup/cpu.max",
        "sys/kernel/mm/transparent_hugepage/enabled",
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
    ];
    for text in GARBAGE {
        let root = machine("doctor_nonsense", &files.map(|file| (file, text)));
        // A directory where a file should be.
        std::fs::create_dir_all(root.join("sys/kernel/realtime")).unwrap();
        assert_eq!(SystemFacts::read(&root), SystemFacts::default(), "{text:?}");
    }
    let root = folder("doctor_bytes");
    std::fs::create_dir_all(root.join("proc")).unwrap();
    std::fs::write(root.join("proc/cpuinfo"), [0xff, 0xfe, b'\n', 0, 0xc3]).unwrap();
    assert_eq!(SystemFacts::read(&root).processor, None);
}

fn doctor(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_umm"))
        .arg("doctor")
        .args(arguments)
        .env_remove("UMM_ISA")
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn json(arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let output = doctor(arguments, environment);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn number(value: &Value, pointer: &str) -> f64 {
    let found = value.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {pointer} in {value}"))
}

#[test]
fn a_configuration_is_measured_and_reported_as_json() {
    let report = json(&["--json", "--config", CONFIG], &[]);
    assert!(number(&report, "/usable_cores") >= 1.0);
    assert!(number(&report, "/bandwidth/one_core_gbps") > 0.0);
    assert!(number(&report, "/bandwidth/all_cores_gbps") > 0.0);
    let products = report["products"].as_array().unwrap();
    for precision in ["f32", "bf16", "int8"] {
        for rows in [4, 64] {
            let is = |p: &&Value| p["precision"] == precision && p["rows"] == rows;
            let found = products.iter().find(is).unwrap();
            // 2 M N K operations in the time of a call.
            let operations =
                2.0 * rows as f64 * number(found, "/in_dim") * number(found, "/out_dim");
            let gops = operations * 1e-3 / number(found, "/call_us");
            assert!((gops / number(found, "/gops") - 1.0).abs() < 1e-6);
        }
    }
    let attention = report["attention"].as_array().unwrap();
    for precision in ["f32", "bf16", "int8"] {
        for rows in [4, 64] {
            let is = |a: &&Value| a["precision"] == precision && a["rows"] == rows;
            for found in attention.iter().filter(is) {
                // Scores and weighted values, 2 operations an element each.
                let width = number(found, "/heads") * number(found, "/head_dim");
                let operations = 4.0 * rows as f64 * number(found, "/keys") * width;
                let gops = operations * 1e-3 / number(found, "/call_us");
                assert!((gops / number(found, "/gops") - 1.0).abs() < 1e-6);
            }
            assert_eq!(attention.iter().filter(is).count(), 2, "nano and base");
        }
    }
    let paths = report["compute"]["isas"].as_array().unwrap();
    let chosen = paths.iter().find(|p| p["name"] == report["compute"]["isa"]);
    assert_eq!(chosen.unwrap()["available"], true);
    let tick = &report["tick"];
    assert_eq!(tick["model"], "nano");
    assert_eq!(number(tick, "/deadline_ms"), 100.0);
    assert_eq!(number(tick, "/left_ms"), 30.0);
    let stages = tick["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|s| s["name"].as_str().unwrap()).collect();
    let all = [
        "front end",
        "adapter",
        "encoder",
        "fusion",
        "heads",
        "caption",
    ];
    assert_eq!(names, all);
    for stage in stages.iter().chain([&tick["whole"]]) {
        assert!(number(stage, "/max_us") >= number(stage, "/p50_us"));
    }
    assert!(number(tick, "/prepared_ms") > 0.0);
    assert!(number(tick, "/weights_bytes") > 1e6 && number(tick, "/arena_bytes") > 1e6);
    assert_eq!(
        report["gpu"].as_str().unwrap().split(':').next(),
        Some("no backend yet")
    );
    for obstacle in report["obstacles"].as_array().unwrap() {
        assert!(!obstacle["what"].as_str().unwrap().is_empty());
        assert!(!obstacle["remedy"].as_str().unwrap().is_empty());
    }
    let slow_build = report["obstacles"]
        .to_string()
        .contains("without optimisation");
    assert_eq!(slow_build, cfg!(debug_assertions));
}

#[test]
fn what_limits_the_products_is_said_and_text_has_every_section() {
    let output = doctor(&[], &[("UMM_ISA", "portable")]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for part in [
        "Processor",
        "portable (chosen)",
        "Measured",
        "GFLOP/s",
        "--config FILE",
        "Real time",
        "SCHED_FIFO",
        "container quota",
        "Live transport",
        "shared memory",
        "GPU",
        "What holds it back",
        "UMM_ISA=portable limits which kernels run",
        "unset UMM_ISA",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

#[test]
fn a_configuration_that_cannot_be_is_an_error_with_file_and_line() {
    let root = folder("doctor_mistakes");
    let fails = |text: &str, parts: &[&str]| {
        let path = root.join("car.toml");
        std::fs::write(&path, text).unwrap();
        let output = doctor(&["--json", "--config", path.to_str().unwrap()], &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{text}"
        );
        assert!(!said.contains("panicked"), "{said}");
        for part in parts {
            assert!(said.contains(part), "{text} gave {said}, not {part}");
        }
    };
    fails(
        "[engine]\nthread = 3\n",
        &["car.toml:2", "did you mean `threads`"],
    );
    let demo = std::fs::read_to_string(CONFIG).unwrap();
    let line = demo.lines().position(|line| line == "[engine]").unwrap() + 2;
    let with = |key: &str| demo.replacen("[engine]\n", &format!("[engine]\n{key}\n"), 1);
    fails(
        &with("threads = 0"),
        &[&format!("car.toml:{line}"), "threads"],
    );
    // A valid configuration whose model cannot be built.
    fails(&with("memory_limit_mib = 1"), &["memory_limit_mib"]);
    let missing = doctor(&["--config", "none.toml"], &[]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("none.toml"));
    let weights = doctor(&["--config", CONFIG, "--weights", "none.safetensors"], &[]);
    assert!(String::from_utf8_lossy(&weights.stderr).contains("none.safetensors"));
    assert!(!Path::new("none.safetensors").exists());
}
