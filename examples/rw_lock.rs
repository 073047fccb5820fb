//! Readers hold a lock together, a writer holds it alone, and nobody overtakes.

mod support;

use std::error::Error;
use std::time::Duration;

use etcd_lock::crossbeam_channel::RecvTimeoutError;
use etcd_lock::{FencingToken, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    // Three programs; here they are managers of one process.
    let connect = |owner: &str| {
        LockManager::connect(etcd.endpoints(), "/rw-lock", LockManagerOptions::default().owner(owner))
    };
    let (web, search, import) = (connect("web")?, connect("search")?, connect("import")?);

    println!("\n1. Readers hold the lock together, each under its own token.");
    let reading = web.new_read_lock("catalogue")?.lock()?;
    let searching = search.new_read_lock("catalogue")?.lock()?;
    println!("   web reads under token {}, search under {}", reading.token(), searching.token());

    println!(
        "\n2. A writer is `new_lock` with the same key. It waits for both, and later readers wait for it."
    );
    let writer = import.new_lock("catalogue")?.enqueue()?;
    // The readers learn that somebody waits for them.
    let told = reading.contended().recv_timeout(Duration::from_secs(30));
    assert_eq!(told, Err(RecvTimeoutError::Disconnected));
    let late = web.new_read_lock("catalogue")?;
    println!(
        "   one more reader at once: {}",
        if late.try_lock()?.is_some() { "yes" } else { "no, it has to wait" }
    );
    for info in import.queue("catalogue")? {
        println!("   {:<8} {:<10} {}", info.state, info.mode, info.owner.unwrap_or_default());
    }
    let late = late.enqueue()?;

    println!("\n3. When the readers are gone the writer is admitted, then the reader that came after it.");
    drop((reading, searching));
    let writing = writer.wait()?;
    let mut cache = Cache::default();
    println!("   the import writes under token {}: {}", writing.token(), cache.write(writing.token()));
    let old = writing.token();
    writing.unlock()?;
    let reading = late.wait()?;
    println!("   web reads again, under token {}: {}", reading.token(), cache.read(reading.token()));

    println!("\n4. A write that was delayed until now is refused by its token.");
    println!("   the import's late write under token {old}: {}", cache.write(old));
    reading.unlock()?;
    Ok(())
}

/// What receives the effects of readers and writers, and refuses those that come too late.
#[derive(Default)]
struct Cache {
    greatest_writer: Option<FencingToken>,
    greatest: Option<FencingToken>,
}

impl Cache {
    /// A reader passes if it came after every writer. It need not be the latest reader.
    fn read(&mut self, token: FencingToken) -> &'static str {
        if Some(token) <= self.greatest_writer {
            return "refused";
        }
        self.greatest = self.greatest.max(Some(token));
        "accepted"
    }

    /// A writer passes if nobody came after it.
    fn write(&mut self, token: FencingToken) -> &'static str {
        if Some(token) < self.greatest {
            return "refused";
        }
        (self.greatest, self.greatest_writer) = (Some(token), Some(token));
        "accepted"
    }
}
