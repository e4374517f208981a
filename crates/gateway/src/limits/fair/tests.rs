//! Clients that wait in tasks, and the order in which they get slots.

use tokio::task::JoinHandle;

use super::*;

/// Clients that wait in a task each. Slot by slot is given back, and the order of those who got one returned.
struct Clients {
    slots: FairSlots,
    held: Vec<Slot>,
    order: Arc<Mutex<Vec<(String, Slot)>>>,
    tasks: Vec<JoinHandle<()>>,
    rejected: Arc<Mutex<Vec<String>>>,
}

impl Clients {
    /// All slots are taken by someone else.
    async fn new(slots: usize, max_waiting: usize) -> Self {
        let shared = FairSlots::new(slots, max_waiting);
        let mut held = Vec::new();
        for n in 0..slots {
            let address = IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
            held.push(shared.take(address).await.unwrap());
        }
        Self { slots: shared, held, order: Arc::default(), tasks: Vec::new(), rejected: Arc::default() }
    }

    async fn arrive(&mut self, name: &str) {
        let (slots, order, rejected) = (self.slots.clone(), Arc::clone(&self.order), Arc::clone(&self.rejected));
        let name = name.to_owned();
        self.tasks.push(tokio::spawn(async move {
            let address = name.split(' ').next().unwrap().parse().unwrap();
            match slots.take(address).await {
                Some(slot) => order.lock().push((name, slot)),
                None => rejected.lock().push(name),
            }
        }));
        tokio::task::yield_now().await;
    }

    async fn served(mut self) -> Vec<String> {
        self.held.truncate(1);
        self.held.clear();
        let mut names = Vec::new();
        loop {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            // The slot is given back only now.
            let Some((name, slot)) = self.order.lock().pop() else { return names };
            names.push(name);
            drop(slot);
        }
    }
}

#[tokio::test]
async fn networks_take_turns() {
    let mut clients = Clients::new(1, 100).await;
    for n in 0..20 {
        clients.arrive(&format!("192.0.2.7 {n}")).await;
    }
    clients.arrive("192.0.2.8 0").await;
    clients.arrive("::ffff:192.0.2.9 0").await;
    clients.arrive("192.0.2.8 1").await;
    let served = clients.served().await;
    assert_eq!(
        served[..6],
        ["192.0.2.7 0", "192.0.2.8 0", "::ffff:192.0.2.9 0", "192.0.2.7 1", "192.0.2.8 1", "192.0.2.7 2"]
    );
    assert_eq!(served.len(), 23);
}

#[tokio::test]
async fn the_networks_of_an_ipv6_site_share_its_turns() {
    let mut clients = Clients::new(1, 100).await;
    for n in 0..10 {
        clients.arrive(&format!("2001:db8:1:{n:x}00::1")).await;
    }
    clients.arrive("2001:db8:1:101::1").await;
    for n in 0..3 {
        clients.arrive(&format!("2001:db8:2::1 {n}")).await;
    }
    let served = clients.served().await;
    assert_eq!(
        served[..5],
        ["2001:db8:1:0::1", "2001:db8:2::1 0", "2001:db8:1:100::1", "2001:db8:2::1 1", "2001:db8:1:200::1"]
            .map(|name| name.replace(":0::", ":000::"))
    );
    assert_eq!(served.last().unwrap(), "2001:db8:1:101::1", "a /56 has one turn before the next has its second");
}

#[tokio::test]
async fn one_site_takes_at_most_half_and_a_quarter_beside_others() {
    let slots = FairSlots::new(16, 100);
    let take = |address: &str| {
        let (slots, address) = (slots.clone(), address.parse().unwrap());
        async move { tokio::time::timeout(std::time::Duration::ZERO, slots.take(address)).await.ok().flatten() }
    };
    let mut held = Vec::new();
    for n in 0..100 {
        held.extend(take(&format!("2001:db8:1:{n:x}::1")).await);
    }
    assert_eq!(held.len(), 8);
    for _ in 0..100 {
        held.extend(take("192.0.2.7").await);
    }
    assert_eq!(held.len(), 12);
    for _ in 0..100 {
        held.extend(take("192.0.2.8").await);
    }
    assert_eq!(held.len(), 16);
    drop(held);
    assert!(take("192.0.2.9").await.is_some());
    let state = slots.0.state.lock();
    assert_eq!((state.taken, state.taken_by.len(), state.waiting()), (0, 0, 0), "nobody is left");
}

#[tokio::test]
async fn what_waits_is_bounded_and_the_largest_site_makes_room() {
    let mut clients = Clients::new(1, 8).await;
    for network in 0..5 {
        for n in 0..3 {
            clients.arrive(&format!("192.0.2.{network} {n}")).await;
        }
    }
    let rejected = clients.rejected.lock().clone();
    let of = |rejected: &[String], network: u32| {
        rejected.iter().filter(|name| name.starts_with(&format!("192.0.2.{network} "))).count()
    };
    assert!((0..5).all(|network| of(&rejected, network) >= 1), "at most a quarter of all each: {rejected:?}");
    assert_eq!(rejected.len(), 7, "{rejected:?}");
    let served = clients.served().await;
    assert_eq!(served.len(), 8);
    assert!((0..5).all(|network| of(&served, network) >= 1), "each has one at least: {served:?}");
}

#[tokio::test]
async fn clients_that_give_up_leave_nothing_behind() {
    let mut clients = Clients::new(1, 100).await;
    for round in 0..1000 {
        clients.arrive(&format!("192.0.2.7 {round}")).await;
        clients.tasks.pop().unwrap().abort();
        tokio::task::yield_now().await;
    }
    assert!(clients.slots.0.state.lock().waiting() <= 25);
    clients.arrive("192.0.2.7 at last").await;
    let slots = clients.slots.clone();
    assert_eq!(clients.served().await, ["192.0.2.7 at last"]);
    assert_eq!(slots.0.state.lock().waiting(), 0);
    assert!(slots.take(IpAddr::from([192, 0, 2, 8])).await.is_some());
}
