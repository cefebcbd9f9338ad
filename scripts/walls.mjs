/**
 * The walls of the source tree as data and checks: who may import whom, and what may stand where.
 *
 * Invariants:
 * - A finding is one line `path:line: sentence`; no finding means the walls stand.
 * - Words are looked for in code only where comments and strings cannot mean them.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join, posix } from 'node:path'

const BELOW_BLOCK = ['aio', 'coroutine', 'sync', 'util']
const BELOW_JOB = ['block', ...BELOW_BLOCK]

/** Room → rooms it may import. `index` is the file at the top of `src`. */
const LAYERS = {
  util: [],
  sync: ['util'],
  coroutine: ['util'],
  aio: ['coroutine', 'sync', 'util'],
  block: BELOW_BLOCK,
  drivers: BELOW_JOB,
  job: BELOW_JOB,
  replication: ['job', ...BELOW_JOB],
  nbd: ['aio', 'coroutine', 'sync', 'util'],
  qmp: ['nbd', 'replication', 'job', 'drivers', ...BELOW_JOB],
  runtime: ['qmp', 'nbd', 'replication', 'job', 'drivers', ...BELOW_JOB],
  index: ['runtime', 'qmp', 'nbd', 'replication', 'job', 'drivers', ...BELOW_JOB],
  cli: ['index'],
  workers: ['job', 'drivers', ...BELOW_JOB],
}

/** Single doors through a wall, each with its reason. */
const DOORS = [
  { from: /^src\/drivers\/nbd\.ts$/, to: /^src\/nbd\//, why: 'the nbd driver is the NBD client' },
  { from: /^src\/nbd\//, to: /^src\/block\//, why: 'exports serve a BlockBackend' },
  { from: /^src\/job\//, to: /^src\/drivers\/[a-z0-9-]+-store\.ts$/, why: 'views of shared disks' },
  {
    from: /^src\/job\//,
    to: /^src\/drivers\/(copy-before-write|commit-filter)\.ts$/,
    why: 'a job puts its own filter in',
  },
  {
    from: /^src\/replication\//,
    to: /^src\/drivers\/copy-before-write\.ts$/,
    why: 'replication owns the protection of the secondary disk',
  },
]

const LINE_LIMITS = [
  { files: /^workers\/.*\.ts$/, lines: 60 },
  { files: /^src\/.*\.ts$/, lines: 450 },
  { files: /^test\/.*\.ts$/, lines: 450 },
]

const CLOCKS =
  /(?<![.\w])(Date\.now|new Date\(\)|performance\.now|process\.hrtime|Math\.random|setTimeout|setInterval|setImmediate|queueMicrotask|process\.nextTick)\b/

/** Words that stand only in some places: `files` are judged, `except` are free, `text` picks the form. */
const WORDS = [
  {
    files: /^(src|workers)\//,
    except: /^src\/sync\//,
    find: /\bAtomics\b/,
    say: 'Atomics belong in src/sync',
  },
  {
    files: /^src\//,
    except: /^src\/(util|aio|cli)\//,
    find: CLOCKS,
    say: 'clocks, timers and chance belong in src/util, src/aio or src/cli',
  },
  {
    files: /^(src|workers)\//,
    except: /^src\/cli\//,
    find: /\b(console\s*\.|process\.exit\b)/,
    say: 'console and process.exit belong in src/cli',
  },
  { files: /^(src|workers|test)\//, find: /\bexport\s+default\b/, say: 'no default exports' },
  {
    files: /^(src|workers)\//,
    find: /\.return\(/,
    say: 'a coroutine runs to its own end: nothing calls return() on it',
  },
  {
    files: /^(src|workers)\//,
    find: /\bas any\b|\bas unknown as\b/,
    say: 'no holes in the types',
  },
  {
    files: /^(src|workers|test)\//,
    find: /\.only\(/,
    say: 'a test that runs alone hides the others',
  },
  {
    files: /^(src|workers|test|bench|scripts)\//,
    except: /walls/,
    raw: true,
    find: /\b(TODO|FIXME|XXX)\b|@ts-ignore/,
    say: 'unfinished work has no place in the tree',
  },
  {
    files: /^(src|workers)\//,
    raw: true,
    find: /\b(not (yet )?implemented|for now|placeholder)\b/i,
    say: 'unfinished work has no place in the tree',
  },
]

/** `runIf(capability)` states its reason itself: the suite is for drivers that have it. */
const SKIP = /\.(skip|skipIf|todo|fails)\b\s*\(/

/** All findings over `files` (path → text, paths relative to the project with `/`). */
export function checkWalls(files) {
  const findings = []
  const graph = new Map()
  for (const [path, text] of files) {
    const code = blank(text, true)
    const imports = importsOf(path, blank(text, false))
    graph.set(
      path,
      imports.filter((each) => !each.typeOnly),
    )
    for (const each of imports) checkImport(path, each, files, findings)
    checkWords(path, text, code, findings)
    checkFinally(path, code, findings)
    checkSkips(path, text, code, findings)
    checkLength(path, text, findings)
  }
  checkCycles(graph, findings)
  return findings.sort()
}

/** The judged files under a project folder. */
export function readTree(root) {
  const files = new Map()
  const walk = (folder) => {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
      const path = `${folder}/${entry.name}`
      if (entry.isDirectory()) walk(path)
      else if (/\.(ts|mts|mjs)$/.test(entry.name))
        files.set(path, readFileSync(join(root, path), 'utf8'))
    }
  }
  for (const folder of ['src', 'workers', 'test', 'bench', 'scripts', 'examples']) {
    try {
      walk(folder)
    } catch (error) {
      if (error.code !== 'ENOENT') throw error
    }
  }
  return files
}

/** The room of a path; undefined outside the judged folders. */
function roomOf(path) {
  if (path.startsWith('workers/')) return 'workers'
  const match = /^src\/(?:([a-z]+)\/|(index)\.ts$)/.exec(path)
  return match?.[1] ?? match?.[2]
}

function importsOf(path, text) {
  const found = []
  const pattern =
    /\b(?:import|export)\s+(type\s)?[^'"()]*?from\s*'([^']+)'|\bimport\s*\(?\s*'([^']+)'/g
  for (const match of text.matchAll(pattern)) {
    const target = match[2] ?? match[3]
    if (!target.startsWith('.')) continue
    const to = posix.normalize(posix.join(posix.dirname(path), target))
    found.push({ to, typeOnly: match[1] !== undefined, line: lineAt(text, match.index) })
  }
  return found
}

function checkImport(path, { to, line }, files, findings) {
  const from = roomOf(path)
  if (from === undefined) return
  const room = roomOf(to)
  if (DOORS.some((door) => door.from.test(path) && door.to.test(to))) return
  if (room === undefined) findings.push(`${path}:${line}: ${to} is not a room of the source tree`)
  else if (room !== from && !LAYERS[from]?.includes(room)) {
    findings.push(`${path}:${line}: ${from} may not import ${room}`)
  } else if (from === 'drivers' && isDriver(to, files) && !sameDriver(path, to)) {
    findings.push(`${path}:${line}: a driver may not import another driver`)
  }
}

function isDriver(path, files) {
  return /\bexport (const|function) \w*Driver\b[^=\n]*: DriverDefinition\b/.test(
    files.get(path) ?? '',
  )
}

function sameDriver(a, b) {
  const family = (path) => path.split('/')[2].replace(/\.ts$/, '')
  return family(a) === family(b) || family(a).startsWith(`${family(b)}-`)
}

function checkWords(path, text, code, findings) {
  for (const rule of WORDS) {
    if (!rule.files.test(path) || rule.except?.test(path)) continue
    const lines = (rule.raw ? text : code).split('\n')
    lines.forEach((line, index) => {
      if (rule.find.test(line)) findings.push(`${path}:${index + 1}: ${rule.say}`)
    })
  }
}

function checkFinally(path, code, findings) {
  if (!/^(src|workers)\//.test(path)) return
  for (const match of code.matchAll(/\bfinally\s*\{/g)) {
    let depth = 1
    let at = match.index + match[0].length
    for (; at < code.length && depth > 0; at++) {
      if (code[at] === '{') depth++
      else if (code[at] === '}') depth--
    }
    const inside = code.slice(match.index, at)
    if (/\byield\b/.test(inside)) {
      findings.push(`${path}:${lineAt(code, match.index)}: a yield in finally loses a return()`)
    }
  }
}

function checkSkips(path, text, code, findings) {
  if (!path.startsWith('test/')) return
  const lines = text.split('\n')
  code.split('\n').forEach((line, index) => {
    if (!SKIP.test(line)) return
    const near = `${lines[index - 1] ?? ''}\n${lines[index]}`
    const named = /\/\/|\*\/|skip\w*\(\s*[^)]*['"`]|missing|without|tool/i.test(near)
    if (!named) findings.push(`${path}:${index + 1}: a skipped test says why`)
  })
}

function checkLength(path, text, findings) {
  const limit = LINE_LIMITS.find((each) => each.files.test(path))
  const lines = text.split('\n').length - 1
  if (limit !== undefined && lines > limit.lines) {
    findings.push(`${path}:${limit.lines}: ${lines} lines, at most ${limit.lines} allowed`)
  }
}

function checkCycles(graph, findings) {
  const done = new Set()
  const visit = (path, trail) => {
    if (done.has(path)) return
    const start = trail.indexOf(path)
    if (start >= 0) {
      findings.push(
        `${path}:1: imports go in a circle: ${[...trail.slice(start), path].join(' → ')}`,
      )
      return
    }
    for (const { to } of graph.get(path) ?? []) visit(to, [...trail, path])
    done.add(path)
  }
  for (const path of graph.keys()) visit(path, [])
}

function lineAt(text, index) {
  return text.slice(0, index).split('\n').length
}

/** Replaces comments, and with `strings` also the inside of strings, by blanks; lines stay in place. */
export function blank(text, strings) {
  const pattern =
    /\/\*[\s\S]*?\*\/|\/\/[^\n]*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\[\s\S]|[^`\\])*`|(?<=[=(,:;!&|?{}\n]\s*)\/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/[dgimsuvy]*/g
  return text.replace(pattern, (token) => {
    const comment = token.startsWith('//') || token.startsWith('/*')
    if (!comment && !strings) return token
    return token.replace(/[^\n]/g, ' ')
  })
}
