//! `exec("/usr/bin/program", { "argument" }, { stdin = "...", timeout = "1s" })`.

use super::{Outcome, RECEIVED_BYTES_MAX, bytes_to_send, failure, operate, running, timeout};
use crate::config::functions::bounds::fail;
use crate::exec;
use evener_core::spec::ProgramSpec;
use mlua::{Function, IntoLua, Lua, Table};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Maximum number of arguments.
const ARGUMENTS_MAX: usize = 1000;
/// Maximum length of all arguments.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;

struct Ran {
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

pub(super) fn function(lua: &Lua) -> mlua::Result<Function> {
    lua.create_async_function(
        |lua, (program, arguments, options): (String, Option<Table>, Option<Table>)| {
            let allowed = running(&lua, "exec").and_then(|runtime| {
                if runtime.allowed.contains(&program) {
                    return timeout(&lua, ("exec", &["stdin"]), options.as_ref());
                }
                let why = format!(
                    "exec must not run {program}: the configuration has to allow it by exec {{ allow = {{ \"{program}\" }} }}"
                );
                Err(fail(&lua, why))
            });
            let begun = allowed.and_then(|limit| {
                let arguments = arguments.map_or(Ok(Vec::new()), |given| texts(&lua, &given))?;
                let input = options
                    .and_then(|options| options.raw_get::<Option<mlua::LuaString>>("stdin").ok().flatten())
                    .map_or(Ok(Vec::new()), |text| bytes_to_send(&lua, "exec", &text))?;
                let program = ProgramSpec { path: program, arguments };
                Ok(operate(&lua, "exec", Ok(limit), ran(program, input)))
            });
            async move {
                match begun?.await? {
                    Err(why) => failure(&lua, &why),
                    Ok(Ran { status, output, errors }) => {
                        let table = lua.create_table()?;
                        table.raw_set("ok", status.success())?;
                        table.raw_set("status", status.code())?;
                        table.raw_set("signal", status.signal())?;
                        table.raw_set("output", lua.create_string(output)?)?;
                        table.raw_set("errors", lua.create_string(errors)?)?;
                        table.into_lua(&lua)
                    }
                }
            }
        },
    )
}

/// Returns the arguments of a program.
fn texts(lua: &Lua, given: &Table) -> mlua::Result<Vec<String>> {
    let count = given.raw_len();
    if count > ARGUMENTS_MAX {
        return Err(fail(lua, format!("exec takes at most {ARGUMENTS_MAX} arguments, got {count}")));
    }
    let mut arguments = Vec::new();
    let mut room = ARGUMENT_BYTES_MAX;
    for number in 1..=count {
        let argument: String = given.raw_get(number)?;
        let left = room.checked_sub(argument.len());
        room = left.ok_or_else(|| {
            fail(lua, format!("the arguments of exec have at most {ARGUMENT_BYTES_MAX} bytes"))
        })?;
        arguments.push(argument);
    }
    Ok(arguments)
}

async fn ran(program: ProgramSpec, input: Vec<u8>) -> Outcome<Ran> {
    let failed = |error: std::io::Error| format!("{}: {error}", program.path);
    let (mut child, group) = exec::start(&program, &Vec::new(), Stdio::piped).map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&input).await;
        }
    };
    let ((), output, errors) = tokio::join!(write, read(stdout), read(stderr));
    let status = child.wait().await.map_err(failed)?;
    group.release();
    Ok(Ran { status, output, errors })
}

/// Reads to the end. Bytes beyond the limit are dropped.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut pipe) = pipe else { return Vec::new() };
    let mut output = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut piece).await {
        let room = RECEIVED_BYTES_MAX - output.len();
        output.extend_from_slice(&piece[..length.min(room)]);
    }
    output
}
