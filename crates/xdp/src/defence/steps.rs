//! Prefix lists by longest match, and the steps from one list to another.

use super::List;
use evener_core::acl::{Access, Acl, Prefix};
use std::collections::BTreeMap;

/// A change of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Set(Prefix, Access),
    /// The decision about addresses that no prefix matches.
    Default(Access),
    Remove(Prefix),
}

impl Default for List {
    /// Returns the list that admits all.
    fn default() -> Self {
        Self { rules: BTreeMap::new(), otherwise: Access::Permit }
    }
}

impl List {
    /// Returns the list of an access list, whose rules can have an order.
    pub(super) fn of(acl: &Acl) -> Self {
        Self { rules: acl.by_longest_match().into_iter().collect(), otherwise: acl.otherwise() }
    }

    /// Returns the steps to another list. After each step every address has its verdict of this list or of the
    /// other list: new prefixes are set from the longest to the shortest, so that a prefix never counts for an
    /// address that a longer new prefix matches. Old prefixes are removed from the shortest to the longest.
    pub(super) fn steps_to(&self, after: &Self) -> Vec<Step> {
        let mut set: Vec<_> =
            after.rules.iter().filter(|(p, access)| self.rules.get(p) != Some(access)).collect();
        set.sort_by_key(|(prefix, _)| u8::MAX - prefix.network().1);
        let mut removed: Vec<_> = self.rules.keys().filter(|p| !after.rules.contains_key(p)).collect();
        removed.sort_by_key(|prefix| prefix.network().1);
        let set = set.into_iter().map(|(prefix, access)| Step::Set(*prefix, *access));
        let removed = removed.into_iter().map(|prefix| Step::Remove(*prefix));
        // The limits are written with the default, also if the default stays.
        set.chain([Step::Default(after.otherwise)]).chain(removed).collect()
    }

    /// Takes a step.
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Set(prefix, access) => drop(self.rules.insert(prefix, access)),
            Step::Default(access) => self.otherwise = access,
            Step::Remove(prefix) => drop(self.rules.remove(&prefix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::Random;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn random_address(random: &mut Random) -> IpAddr {
        let bits = random.bits();
        match random.below(3) {
            0 => Ipv6Addr::from_bits(u128::from(bits & 0x0303) << 112 | u128::from(bits >> 63)).into(),
            _ => Ipv4Addr::from((bits as u32) & 0x0303_0303).into(),
        }
    }

    fn random_acl(random: &mut Random) -> Acl {
        let access = |random: &mut Random| [Access::Permit, Access::Deny][random.below(2)];
        let group = |random: &mut Random| {
            let prefix = |random: &mut Random| {
                let address = random_address(random);
                Prefix::new(address, random.below(if address.is_ipv4() { 33 } else { 129 }) as u8)
            };
            (access(random), (0..random.below(8)).map(|_| prefix(random)).collect::<Vec<_>>())
        };
        let groups: Vec<_> = (0..random.below(8)).map(|_| group(random)).collect();
        Acl::in_order(&groups, access(random))
    }

    impl List {
        fn access(&self, client: IpAddr) -> Access {
            let matching = self.rules.iter().filter(|(prefix, _)| prefix.contains(client));
            matching
                .max_by_key(|(prefix, _)| prefix.network().1)
                .map_or(self.otherwise, |(_, access)| *access)
        }
    }

    #[test]
    fn each_address_has_its_old_or_its_new_verdict_after_each_step() {
        let mut random = Random::seeded(21);
        for _ in 0..300 {
            let (old, new) = (random_acl(&mut random), random_acl(&mut random));
            let mut list = List::of(&old);
            let clients: Vec<_> = (0..60).map(|_| random_address(&mut random)).collect();
            for step in list.steps_to(&List::of(&new)) {
                list.take(step);
                for client in &clients {
                    let verdicts = [old.access(*client), new.access(*client)];
                    assert!(
                        verdicts.contains(&list.access(*client)),
                        "{client} {step:?}: {old:?} -> {new:?}"
                    );
                }
            }
            assert_eq!(list, List::of(&new));
        }
    }

    #[test]
    fn an_equal_list_has_no_steps_but_its_default() {
        let list = List::of(&random_acl(&mut Random::seeded(3)));
        assert_eq!(list.steps_to(&list), [Step::Default(list.otherwise)]);
    }
}
