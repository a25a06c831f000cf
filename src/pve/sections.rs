//! Proxmox VE's plain section files: HA's rules, groups and resources, mappings of devices, replication jobs
//! (`PVE::SectionConfig`). storage.cfg has a reader of its own, since what is wrong in it decides what PVE starts.

/// A section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    /// What stands before the colon, in small letters; empty where the file's headers have no type.
    pub kind: String,
    /// The section's name.
    pub id: String,
    /// Its properties in the file's order, doubled ones too: a mapping has one `map` for each node.
    properties: Vec<(String, String)>,
}

impl Section {
    /// A property's value; of a doubled one the first, as `PVE::SectionConfig` keeps it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a property that is a list of lines.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        self.properties.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A boolean that is set: alone on its line it counts as 1.
    pub fn is_set(&self, name: &str) -> bool {
        let value = self.get(name).map(str::as_bytes);
        value.is_some_and(|value| value.is_empty() || super::perl::boolean(value) == Some(true))
    }

    /// The parts of a list.
    pub fn list(&self, name: &str) -> Vec<String> {
        let value = self.get(name).unwrap_or_default();
        super::perl::split_list(value.as_bytes()).into_iter().map(super::perl::lossy).collect()
    }
}

/// The sections of a file: a header at the beginning of a line, `type: name` or (mappings) a name alone, then lines that
/// begin with a blank.
pub(crate) fn sections(text: &str) -> Vec<Section> {
    let mut all: Vec<Section> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if line.trim().is_empty() {
            continue;
        }
        if !line.starts_with([' ', '\t']) {
            let (kind, id) = line.split_once(':').unwrap_or(("", line));
            let (kind, id) = (kind.trim().to_ascii_lowercase(), id.trim().to_owned());
            all.push(Section { kind, id, properties: Vec::new() });
        } else if let Some(section) = all.last_mut() {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            section.properties.push((key.to_owned(), value.trim().to_owned()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read_with_and_without_a_type() {
        let text = "node-affinity: r1\n\tresources vm:100,ct:101\n\tstrict 1\n\n# x\ngpu\n\tmap node=a,path=1\n\tmap node=b,path=2\n\tmdev\n";
        let all = sections(text);
        assert_eq!((all[0].kind.as_str(), all[0].id.as_str()), ("node-affinity", "r1"));
        assert_eq!(all[0].list("resources"), ["vm:100", "ct:101"]);
        assert!(all[0].is_set("strict") && !all[0].is_set("disable"));
        assert_eq!((all[1].kind.as_str(), all[1].id.as_str()), ("", "gpu"));
        assert_eq!(all[1].all("map").count(), 2);
        assert!(all[1].is_set("mdev"));
    }
}
