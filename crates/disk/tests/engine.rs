//! The engine against raw disks: each way a request can go gives the same bytes.

use std::sync::{Arc, Mutex};

use trapline_disk::{
    Buffer, CacheMode, Completion, Disk, Engine, EngineOptions, HostFile, Observer, Op, RawDisk, Request,
};

fn disk(cache: CacheMode) -> Option<(tempfile::NamedTempFile, Arc<dyn Disk>)> {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let storage = match HostFile::open(file.path(), false, cache, true) {
        Ok(storage) => storage,
        Err(e) => {
            eprintln!("skipped: {e}");
            return None;
        }
    };
    let raw = RawDisk::new(Arc::new(storage), false, cache.is_write_through()).unwrap();
    Some((file, Arc::new(raw)))
}

fn finish(engine: &Engine, mut done: Vec<Completion>, n: usize) -> Vec<Completion> {
    while done.len() < n {
        engine.wait_idle();
        done.extend(engine.reap());
    }
    done
}

fn script(cache: CacheMode, options: EngineOptions) {
    let Some((file, disk)) = disk(cache) else { return };
    let engine = Engine::new(disk, options).unwrap();
    let mut done = Vec::new();
    for i in 0..64u64 {
        let mut buffer = Buffer::new(16384);
        buffer.fill(i as u8);
        let op = Op::Write { offset: i * 16384, buffer, fua: i % 8 == 0 };
        done.extend(engine.submit(Request { id: i, op }));
    }
    for completion in finish(&engine, done, 64) {
        completion.result.unwrap();
    }
    let mut done: Vec<_> = engine.submit(Request { id: 0, op: Op::Flush }).into_iter().collect();
    for i in 0..64u64 {
        let op = Op::Read { offset: i * 16384, buffer: Buffer::new(16384) };
        done.extend(engine.submit(Request { id: i, op }));
    }
    let done = finish(&engine, done, 65);
    for completion in &done {
        assert!(completion.result.is_ok());
        if let Op::Read { buffer, .. } = &completion.request.op {
            assert!(buffer.iter().all(|&b| u64::from(b) == completion.request.id));
        }
    }
    assert_eq!(std::fs::read(file.path()).unwrap()[17 * 16384], 17);
}

#[test]
fn every_cache_mode_and_engine() {
    use CacheMode::*;
    for cache in [None, Writeback, Writethrough, Directsync, Unsafe] {
        for io_uring in [true, false] {
            for inline in [true, false] {
                script(cache, EngineOptions { blocking: false, inline, io_uring, threads: 3 });
            }
        }
    }
}

#[test]
fn the_event_tells_of_a_completion() {
    let (_file, disk) = disk(CacheMode::Writeback).unwrap();
    let engine = Engine::new(disk, EngineOptions { inline: false, ..EngineOptions::default() }).unwrap();
    let op = Op::Read { offset: 0, buffer: Buffer::new(4096) };
    assert!(engine.submit(Request { id: 7, op }).is_none());
    engine.wait_idle();
    assert!(engine.event().read().is_ok());
    let done = engine.reap();
    assert_eq!((done.len(), done[0].request.id), (1, 7));
}

#[test]
fn what_the_page_cache_holds_is_served_at_once() {
    let (_file, disk) = disk(CacheMode::Writeback).unwrap();
    disk.write(0, &[5; 8192]).unwrap();
    let engine = Engine::new(disk, EngineOptions::default()).unwrap();
    let op = Op::Read { offset: 0, buffer: Buffer::new(8192) };
    let done = engine.submit(Request { id: 1, op }).expect("just written, so cached");
    let Op::Read { buffer, .. } = done.request.op else { panic!() };
    assert_eq!(&buffer[..], &[5; 8192]);
}

#[test]
fn only_writes_to_the_page_cache_are_served_at_once() {
    use CacheMode::*;
    for cache in [None, Writeback, Writethrough, Directsync, Unsafe] {
        let Some((file, disk)) = disk(cache) else { continue };
        disk.write(0, &[5; 8192]).unwrap();
        let engine = Engine::new(disk, EngineOptions::default()).unwrap();
        for (fua, fill) in [(false, 6), (true, 7)] {
            let mut buffer = Buffer::new(4096);
            buffer.fill(fill);
            let done = engine.submit(Request { id: 1, op: Op::Write { offset: 4096, buffer, fua } });
            let expected = matches!(cache, Writeback | Unsafe) && !fua;
            assert_eq!(done.is_some(), expected, "{cache:?}, forced unit access: {fua}");
            for completion in finish(&engine, done.into_iter().collect(), 1) {
                completion.result.unwrap();
            }
            let content = std::fs::read(file.path()).unwrap();
            assert_eq!((content[4095], &content[4096..8192]), (5, &[fill; 4096][..]), "{cache:?}");
        }
    }
}

#[test]
fn a_blocking_engine_leaves_nothing_in_flight() {
    let (_file, disk) = disk(CacheMode::Writeback).unwrap();
    let engine = Engine::new(disk, EngineOptions { blocking: true, ..EngineOptions::default() }).unwrap();
    assert!(!engine.uses_io_uring());
    for op in [
        Op::Write { offset: 0, buffer: Buffer::new(4096), fua: true },
        Op::Flush,
        Op::Read { offset: 0, buffer: Buffer::new(4096) },
        Op::Discard { offset: 0, len: 4096 },
    ] {
        let done = engine.submit(Request { id: 1, op }).expect("it is done");
        done.result.unwrap();
    }
    assert!(engine.reap().is_empty());
}

#[test]
fn errors_come_back_with_the_buffer() {
    let (_file, disk) = disk(CacheMode::Writeback).unwrap();
    for inline in [true, false] {
        let options = EngineOptions { inline, ..EngineOptions::default() };
        let engine = Engine::new(disk.clone(), options).unwrap();
        let op = Op::Write { offset: u64::MAX, buffer: Buffer::new(512), fua: false };
        let done = finish(&engine, engine.submit(Request { id: 1, op }).into_iter().collect(), 1);
        assert!(done[0].result.is_err());
        assert!(matches!(&done[0].request.op, Op::Write { buffer, .. } if buffer.len() == 512));
    }
}

#[test]
fn an_engine_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Engine>();
    shared::<Completion>();
}

/// What an observer was told: `b` for a beginning, `e` for an end, and which request.
#[derive(Default)]
struct Told(Mutex<Vec<(char, u64)>>);

impl Observer for Told {
    fn submitted(&self, id: u64, _op: &Op) {
        self.0.lock().unwrap().push(('b', id));
    }

    fn completed(&self, id: u64, _op: &Op, failed: bool) {
        self.0.lock().unwrap().push((if failed { 'x' } else { 'e' }, id));
    }
}

#[test]
fn an_observer_learns_of_each_request_and_its_end() {
    for inline in [true, false] {
        let (_file, disk) = disk(CacheMode::Writeback).unwrap();
        let engine = Engine::new(disk, EngineOptions { inline, ..EngineOptions::default() }).unwrap();
        let told = Arc::new(Told::default());
        engine.observe(told.clone());
        let ops = [
            Op::Write { offset: 0, buffer: Buffer::new(4096), fua: false },
            Op::Flush,
            Op::Read { offset: 0, buffer: Buffer::new(512) },
            Op::Read { offset: u64::MAX, buffer: Buffer::new(512) },
        ];
        for (id, op) in (1..).zip(ops) {
            let done = engine.submit(Request { id, op }).into_iter().collect();
            finish(&engine, done, 1);
        }
        let expected = [('b', 1), ('e', 1), ('b', 2), ('e', 2), ('b', 3), ('e', 3), ('b', 4), ('x', 4)];
        assert_eq!(*told.0.lock().unwrap(), expected, "inline: {inline}");
    }
}
