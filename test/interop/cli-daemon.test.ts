/** The daemon's command line beside qemu-storage-daemon: the same refusals in the same words. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, vi } from 'vitest'
import { Runtime, type StartupOption } from '../../src/index.ts'
import { run, withTools } from './nbd-peers.ts'

vi.setConfig({ testTimeout: 120_000 })

const TOOLS = ['qemu-storage-daemon']
const dir = mkdtempSync(join(tmpdir(), 'blockstep-beside-'))
writeFileSync(join(dir, 'junk'), 'no image')
afterAll(() => rmSync(dir, { recursive: true, force: true }))

const NODE = '--blockdev null-co,node-name=n'
const SERVER = '--nbd-server addr.type=unix,addr.path=nbd'
const CHARDEV = '--chardev null,id=c'

/** Command lines that are refused. */
const REFUSED: Readonly<Record<string, readonly string[]>> = {
  nodes: [
    '--blockdev null-co',
    `${NODE} ${NODE}`,
    '--blockdev driver=nosuch,node-name=a',
    '--blockdev raw,node-name=a',
    '--blockdev file,node-name=f,filename=missing',
    '--blockdev {"driver":"null-co","node-name":"a","x":1}',
    '--blockdev {"driver":"null-co"',
    '--blockdev null-co,node-name=a,size=4X',
    '--blockdev raw,node-name=q,file.driver=null-co,file.read-zeroes=maybe',
    '--blockdev null-co,node-name=a,a.b=1,a=2',
    '--blockdev null-co,node-name=a,size',
    '--blockdev quorum,node-name=q,children.1=a,vote-threshold=1',
    '--blockdev qcow2,node-name=b,file.driver=file,file.filename=junk',
    '--blockdev throttle,node-name=b,file.driver=null-co,throttle-group=g',
    '--blockdev nbd,node-name=n,server.type=unix,server.path=missing',
  ],
  exports: [
    '--export nbd,id=a,node-name=b',
    '--export nbd,node-name=b',
    '--export foo,id=a,node-name=b',
    '--export id=a,node-name=b',
    `${NODE} --export nbd,id=a,node-name=n`,
    `${NODE} ${SERVER} --export nbd,id=a,node-name=n --export nbd,id=c,node-name=n`,
    `${NODE},read-only=on ${SERVER} --export nbd,id=a,node-name=n,writable=on`,
    `${SERVER} ${SERVER}`,
    '--nbd-server addr.type=unix,addr.path=missing/x',
    '--nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=abc',
    '--nbd-server addr.host=127.0.0.1,addr.port=1',
    '--nbd-server unix',
  ],
  'objects and monitors': [
    '--object throttle-group',
    '--object throttle-group,id=a,limits.bps-total=x',
    '--object nosuch,id=a',
    '--object secret,id=s',
    '--monitor nosuch',
    `${CHARDEV} --monitor c,mode=readline`,
    `${CHARDEV} --monitor c,foo=on`,
    `${CHARDEV} --monitor c --monitor c`,
    `${CHARDEV} ${CHARDEV}`,
    '--chardev stdio',
    '--chardev id=c',
    '--chardev nosuch,id=c',
    '--chardev socket,id=c,path=missing',
    '--chardev socket,id=c,path=x,wait=off',
    '--chardev socket,id=c,path=x,server=on,wait=off,reconnect=1',
    '--chardev socket,id=c,path=x,server=on,wait=off,foo=1',
  ],
}

/** What our daemon says to these options. */
async function ours(line: string): Promise<string> {
  await using runtime = await Runtime.create()
  const back = process.cwd()
  process.chdir(dir)
  try {
    const words = line.split(' ')
    for (let at = 0; at < words.length; at += 2) {
      const [name = '', text = ''] = words.slice(at, at + 2)
      const done = runtime.applyOption(name.slice(2) as StartupOption, text)
      const refusal = await done.then(
        () => undefined,
        (error: Error) => `${name} ${text}: ${error.message}\n`,
      )
      if (refusal !== undefined) return refusal
    }
    return ''
  } finally {
    process.chdir(back)
  }
}

for (const [what, lines] of Object.entries(REFUSED)) {
  withTools(TOOLS, `interop / cli / ${what} are refused as qemu-storage-daemon does`, async () => {
    for (const line of lines) {
      const theirs = await run('qemu-storage-daemon', line.split(' '), dir)
      expect(theirs.code, line).toBe(1)
      expect(`qemu-storage-daemon: ${await ours(line)}`).toBe(theirs.err)
    }
  })
}
