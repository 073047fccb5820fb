//! A batch job that keeps its cursor and its results in etcd by fenced writes, and is taken over in the middle: nothing
//! is done twice, nothing is left out, and the first worker cannot write any more, whether it knows that or not.

mod support;

use std::error::Error;

use etcd_lock::{ForceUnlock, LockError, LockGuard, LockManager, LockManagerOptions, WriteBatch};

const FILES: [&str; 6] = ["a.csv", "b.csv", "c.csv", "d.csv", "e.csv", "f.csv"];
/// Below another key than the locks' root, whose keys belong to the library.
const CURSOR: &str = "/import/cursor";

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let connect = |owner: &str| {
        let options = LockManagerOptions::default().owner(owner);
        LockManager::connect(etcd.endpoints(), "/checkpoint", options)
    };
    let (anna, ben) = (connect("anna")?, connect("ben")?);

    let first = anna.new_lock("import")?.lock()?;
    import(&first, "anna", 3)?;
    // She is stuck, and somebody gives her work to Ben: exactly the hold that was shown, no later one.
    let shown = ben.lock_info("import")?.ok_or("it is held")?;
    ben.force_unlock_if("import", shown.token, ForceUnlock::Lock)?;
    let second = ben.new_lock("import")?.lock()?;
    import(&second, "ben", 2)?;

    // Anna goes on where she was. etcd refuses her writes, even if nothing has told her yet.
    match import(&first, "anna", 3) {
        Err(LockError::Expired { reason, .. }) => println!("anna: stops, because {reason}"),
        other => return Err(format!("she is not to write any more: {other:?}").into()),
    }

    import(&second, "ben", FILES.len())?;
    for file in FILES {
        let by = second.etcd().get(&format!("/import/done/{file}"))?.ok_or("it was left out")?;
        println!("{file} was imported by {}", String::from_utf8_lossy(&by));
    }
    // So that the example can run again on the same cluster.
    let done = FILES.iter().fold(WriteBatch::new(), |done, file| done.delete(format!("/import/done/{file}")));
    second.etcd().commit(done.delete(CURSOR))?;
    second.unlock()?;
    Ok(())
}

/// Imports up to `limit` files from the cursor on.
fn import(guard: &LockGuard, who: &str, limit: usize) -> Result<(), LockError> {
    let etcd = guard.etcd();
    // After an error that leaves open whether a write was carried out, this read says it for good.
    let cursor = etcd.get(CURSOR)?.and_then(|value| String::from_utf8(value).ok()?.parse().ok());
    let cursor: usize = cursor.unwrap_or(0);
    for (number, file) in FILES.iter().enumerate().skip(cursor).take(limit) {
        println!("{who}: imports {file}");
        // The result and the cursor, or neither.
        let writes =
            WriteBatch::new().put(format!("/import/done/{file}"), who).put(CURSOR, (number + 1).to_string());
        etcd.commit(writes)?;
    }
    Ok(())
}
