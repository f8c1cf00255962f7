//! Servers behind proxies: which one the environment names, what it is asked, and what is said where
//! it does not help.

use super::{Scene, place, without_provenance};
use crate::support::cli::{Run, segpack};
use crate::support::hub::{Faults, TOKEN};
use crate::support::proxy::{HOST, Manners, Proxy, authority, with_tls};

/// A proxy that knows where the hub of a scene is.
fn proxy_for(scene: &Scene, mut manners: Manners) -> Proxy {
    scene.hub.address().clone_into(&mut manners.host);
    Proxy::with(manners)
}

/// `scan`, with nothing but these variables about the network.
fn scan(scene: &Scene, place: &str, environment: &[(&str, &str)]) -> Run {
    let mut command = scene.hub.program();
    command.env_remove("NO_PROXY").env("SEGPACK_RETRIES", "0");
    command.env("HF_ENDPOINT", format!("http://{HOST}"));
    command.envs(environment.iter().copied());
    Run::of(command.args(["scan", place, "--json"]))
}

#[test]
fn without_tls_a_proxy_is_asked_by_whole_addresses_of_hosts_that_it_alone_may_know() {
    let scene = Scene::with(Faults {
        private: true,
        ..Faults::default()
    });
    // as most are: tunnels lead to port 443 alone
    let proxy = proxy_for(
        &scene,
        Manners {
            refuse_tunnels: Some(403),
            ..Manners::default()
        },
    );
    let through = format!("http://{}", proxy.address());
    let variables = [("HTTP_PROXY", &*through), ("HF_TOKEN", TOKEN)];
    let run = scan(&scene, &place(), &variables).ok();
    let local = segpack!["scan", &scene.at("checkpoint"), "--json"].ok();
    assert_eq!(without_provenance(&local), without_provenance(&run));
    let log = proxy.log();
    assert_eq!(log.len(), scene.hub.log().len());
    let of_hub = format!("GET http://{HOST}/");
    assert!(log[0].starts_with(&of_hub), "{log:?}");
    // the content network, too
    assert!(
        log.iter()
            .any(|line| line.starts_with("GET http://127.0.0.2:"))
    );
    assert!(!scene.hub.has_leaked(), "the content network got the token");
}

#[test]
fn with_tls_it_makes_tunnels_and_sees_nothing_of_what_goes_through() {
    let scene = Scene::with(Faults::default());
    let server = with_tls(scene.hub.address());
    let proxy = Proxy::with(Manners {
        host: server,
        ..Manners::default()
    });
    let folder = format!("https://{HOST}/plain/");
    let trusted = authority();
    let variables = [
        ("https_proxy", proxy.address()), // without a scheme, as many write it
        ("SSL_CERT_FILE", trusted.to_str().unwrap()),
    ];
    let run = scan(&scene, &folder, &variables).ok();
    let local = segpack!["scan", &scene.at("checkpoint"), "--json"].ok();
    let [run, local] = [run, local].map(|run| run.json()["classes"].clone());
    assert_eq!(run, local);
    let tunnel = format!("CONNECT {HOST}:443 HTTP/1.1");
    assert!(
        proxy.log().iter().all(|line| *line == tunnel),
        "{:?}",
        proxy.log()
    );
    // whoever is at the other end has to be the one that was asked for
    let server = scene.at("checkpoint/config.json");
    let variables = [variables[0], ("SSL_CERT_FILE", server.to_str().unwrap())];
    let run = scan(&scene, &folder, &variables).exits(1);
    run.says(&["no server can be trusted"]);
}

#[test]
fn a_proxy_that_is_spoken_to_with_tls_passes_requests_on() {
    let scene = Scene::with(Faults::default());
    let manners = Manners {
        tls: true,
        ..Manners::default()
    };
    let proxy = proxy_for(&scene, manners);
    let (through, trusted) = (format!("https://{}", proxy.address()), authority());
    let variables = [
        ("ALL_PROXY", &*through),
        ("SSL_CERT_FILE", trusted.to_str().unwrap()),
    ];
    scan(&scene, &place(), &variables).ok();
    assert!(proxy.log()[0].starts_with(&format!("GET http://{HOST}/")));
}

#[test]
fn a_password_goes_to_the_proxy_and_into_no_message() {
    let scene = Scene::with(Faults::default());
    let manners = Manners {
        password: Some("bWU6c2VjcmV0QDE="), // me:secret@1
        ..Manners::default()
    };
    let proxy = proxy_for(&scene, manners);
    let (at, folder) = (proxy.address(), format!("https://{HOST}/plain/"));
    let right = format!("http://me:secret%401@{at}");
    scan(&scene, &place(), &[("HTTP_PROXY", &right)]).ok();
    let wrong = format!("http://me:guessed%401@{at}");
    for (place, variable) in [(&*place(), "HTTP_PROXY"), (&folder, "HTTPS_PROXY")] {
        for value in [&wrong, &format!("http://{at}")] {
            let run = scan(&scene, place, &[(variable, value)]).exits(1);
            assert!(!run.stderr.contains("guessed") && !run.text().contains("guessed"));
            let which = format!("{variable}: the proxy {at} does not pass on requests");
            run.says(&[
                &which,
                "(407: it wants another name and password)",
                "USER:PASSWORD@",
            ]);
        }
    }
}

#[test]
fn what_is_wrong_with_a_proxy_is_said_with_the_variable_that_names_it() {
    let scene = Scene::with(Faults::default());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let run = scan(&scene, &place(), &[("HTTP_PROXY", &closed)]).exits(1);
    let which = format!("no answer through the proxy {closed}, which HTTP_PROXY names");
    run.says(&[&which]);
    let folder = format!("https://{HOST}/plain/");
    let run = scan(&scene, &folder, &[("all_proxy", &closed)]).exits(1);
    run.says(&[&which.replace("HTTP_PROXY", "all_proxy")]);

    let manners = Manners {
        refuse_tunnels: Some(403),
        ..Manners::default()
    };
    let proxy = proxy_for(&scene, manners);
    let run = scan(&scene, &folder, &[("HTTPS_PROXY", proxy.address())]).exits(1);
    run.says(&["HTTPS_PROXY: the proxy", "(403)", "NO_PROXY=HOST"]);

    for (value, why) in [
        ("socks5://127.0.0.1:9", "names a SOCKS proxy"),
        ("http://", "is not the address of a proxy"),
        ("nonsense://x", "is not the address of a proxy"),
    ] {
        let run = scan(&scene, &place(), &[("HTTP_PROXY", value)]).exits(1);
        run.says(&[&format!("HTTP_PROXY: {why}")]);
    }
    assert_eq!(scene.hub.log(), [""; 0]);
}

#[test]
fn hosts_that_need_none_are_asked_without_and_small_letters_count() {
    let scene = Scene::with(Faults::default());
    let proxy = proxy_for(&scene, Manners::default());
    let (at, endpoint) = (proxy.address(), scene.hub.endpoint());
    for variables in [
        &[("HTTP_PROXY", at), ("NO_PROXY", "example.com, 127.0.0.0/8")][..],
        &[("HTTP_PROXY", at), ("NO_PROXY", "*")],
        &[("HTTP_PROXY", at), ("http_proxy", "")],
        &[("HTTPS_PROXY", at)],
    ] {
        let mut variables = variables.to_vec();
        variables.push(("HF_ENDPOINT", endpoint));
        scan(&scene, &place(), &variables).ok();
        assert_eq!(proxy.log(), [""; 0], "{variables:?}");
    }
    // the hub alone is asked without it
    let variables = [
        ("http_proxy", at),
        ("HTTP_PROXY", "nonsense://x"),
        ("no_proxy", scene.hub.address()),
        ("NO_PROXY", "*"),
        ("HF_ENDPOINT", endpoint),
    ];
    scan(&scene, &place(), &variables).ok();
    let log = proxy.log();
    let is_of_network = |line: &String| line.starts_with("GET http://127.0.0.2:");
    assert!(!log.is_empty() && log.iter().all(is_of_network), "{log:?}");
}
