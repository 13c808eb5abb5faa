//! The servers on a shared store: what this one announces, and what the others have announced.

use crate::any_store::{Engine, SharedHost};
use crate::schema::member::{About, Member, MemberPlugin};
use vkog_plugin_host::{Chain, Plugin};

/// Returns what this server announces.
pub fn about(addresses: Vec<String>, plugins: &[Plugin], chain: &Chain) -> About {
    let machine = gethostname::gethostname().to_string_lossy().into_owned();
    About { machine, addresses, version: env!("CARGO_PKG_VERSION").to_owned(), plugins: loaded(plugins, chain) }
}

/// Returns the plugins of this server, in the order of the chain.
fn loaded(plugins: &[Plugin], chain: &Chain) -> Vec<MemberPlugin> {
    let of_member = |name: &str| {
        let plugin = plugins.iter().find(|plugin| plugin.name() == name)?;
        let (version, sha256) = (plugin.library().version().to_owned(), plugin.library().sha256().to_string());
        Some(MemberPlugin { name: name.to_owned(), version, sha256 })
    };
    chain.members().iter().filter_map(|member| of_member(member.name())).collect()
}

/// Returns the servers on the store of this one. Blocks while a reload replaces plugins.
pub fn members(engine: &Engine, shared: &SharedHost) -> Vec<Member> {
    let here = engine.plugins().look(|plugins, chain, _| loaded(plugins, chain));
    let status = shared.store().status();
    let member = |found: vkog_store::BackendMember| Member::new(found.id, &found.about, &status.id, &here);
    status.members.clone().into_iter().filter_map(member).collect()
}

/// Announces the plugins of this server, after they have changed.
pub fn announce(engine: &Engine, shared: &SharedHost) {
    let addresses = shared.addresses().to_vec();
    shared.store().announce(&engine.plugins().look(|plugins, chain, _| about(addresses, plugins, chain)).to_json());
}

/// Describes the servers whose plugins differ from those of this one, in one clause; none if there are none.
pub fn differing(members: &[Member]) -> Option<String> {
    let differing: Vec<String> = members.iter().filter(|member| member.differs).map(named).collect();
    (!differing.is_empty()).then(|| format!("other plugins run on {}", differing.join(", ")))
}

fn named(Member { id, about, .. }: &Member) -> String {
    let addresses = about.addresses.join(", ");
    let parts: Vec<&str> = [&*about.machine, &*addresses].into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { id.clone() } else { format!("{id} ({})", parts.join(", ")) }
}
