/** Options of the daemon's command line, worked off in this process. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex, PassThrough, type Readable } from 'node:stream'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { Runtime, type StartupOption } from '../../../src/index.ts'

let dir: string
let runtime: Runtime
let input: PassThrough
let output: PassThrough

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-options-'))
  input = new PassThrough()
  output = new PassThrough()
  runtime = await Runtime.create({
    stdio: () => Duplex.from({ readable: input, writable: output }).pause(),
  })
})

afterEach(async () => {
  await runtime.close()
  rmSync(dir, { recursive: true, force: true })
})

const apply = (option: StartupOption, text: string): Promise<void> =>
  runtime.applyOption(option, text)

/** The words that an option is refused with. */
async function refusal(option: StartupOption, text: string): Promise<string> {
  return apply(option, text).then(
    () => 'accepted',
    (error: Error) => error.message,
  )
}

/** Everything that arrives until the text fits. */
async function read(stream: Readable, fits: RegExp): Promise<string> {
  let text = ''
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    text += String(chunk)
    if (fits.test(text)) break
  }
  return text
}

const names = (): string[] => runtime.graph.nodes().map((node) => node.name)

describe('cli / options / nodes', () => {
  test('dots nest, indices make lists, the first word is the driver', async () => {
    await apply('blockdev', 'null-co,node-name=a,size=1M')
    const inline = 'children.1.driver=null-co,children.1.size=0x100000'
    await apply('blockdev', `quorum,node-name=q,vote-threshold=1,children.0=a,${inline}`)
    const quorum = runtime.graph.lookup('q')
    expect([...quorum.children.keys()]).toEqual(['children.0', 'children.1'])
    expect(quorum.length()).toBe(1 << 20)
  })

  test('JSON is taken as the monitor takes it', async () => {
    await apply('blockdev', '{"driver": "null-co", "node-name": "a", "size": 512}')
    expect(names()).toEqual(['a'])
    const typed = '{"driver": "null-co", "node-name": "b", "size": "512"}'
    expect(await refusal('blockdev', typed)).toMatch(/Invalid parameter type for 'size'/)
  })

  test('a comma is written twice', async () => {
    expect(await refusal('blockdev', 'file,node-name=f,filename=/no,,where')).toBe(
      "Could not open '/no,where': No such file or directory",
    )
  })

  const refused: readonly (readonly [StartupOption, string, string])[] = [
    ['blockdev', 'null-co', "'node-name' must be specified for the root node"],
    ['blockdev', 'node-name=a', "Parameter 'driver' is missing"],
    ['blockdev', '', "Parameter 'driver' is missing"],
    ['blockdev', 'nosuch,node-name=a', "Parameter 'driver' does not accept value 'nosuch'"],
    ['blockdev', 'null-co,node-name=a,size', "Expected '=' after parameter 'size'"],
    ['blockdev', 'null-co,node-name=a,size=4X', "Parameter 'size' expects integer"],
    [
      'blockdev',
      'raw,node-name=a,file.driver=null-co,file.read-zeroes=maybe',
      "Parameter 'file.read-zeroes' expects 'on' or 'off'",
    ],
    ['blockdev', 'quorum,node-name=q,children.1=a', "Parameter 'children.0' missing"],
    ['blockdev', 'null-co,node-name=a,a.b=1,a=2', "Parameters 'a.*' used inconsistently"],
    ['blockdev', 'null-co,,x', "Parameter 'driver' does not accept value 'null-co,x'"],
    ['blockdev', 'null-co,a..b=x', "Invalid parameter 'a..b'"],
    ['blockdev', 'help', 'Help is not available for this option'],
    ['blockdev', '{"driver": "null-co"', 'JSON parse error, premature EOI'],
    ['export', 'nbd,id=a,node-name=b', "Cannot find device='' nor node-name='b'"],
    ['export', 'nbd,node-name=b', "Parameter 'id' is missing"],
    ['export', 'id=a,node-name=b', "Parameter 'type' is missing"],
    ['nbd-server', 'unix', "Expected '=' after parameter 'unix'"],
    ['nbd-server', 'addr.host=x,addr.port=1', "Parameter 'addr.type' is missing"],
    ['nbd-server', 'addr.type=inet,addr.host=x', "Parameter 'addr.port' is missing"],
    ['object', 'throttle-group', "Parameter 'id' is missing"],
    ['object', 'nosuch,id=a', "Parameter 'qom-type' does not accept value 'nosuch'"],
    ['monitor', 'nosuch', 'chardev "nosuch" not found'],
    ['monitor', 'c,mode=readline', 'Only QMP is supported'],
    ['chardev', 'stdio', 'chardev: no id specified'],
    ['chardev', 'id=c', 'chardev: "c" missing backend'],
    ['chardev', 'nosuch,id=c', "'nosuch' is not a valid char driver name"],
    ['chardev', 'null,id=c,foo=1', "Invalid parameter 'foo'"],
    ['chardev', 'socket,id=c,host=x', 'chardev: socket: no port given'],
    ['chardev', 'socket,id=c,path=x,server=maybe', "Parameter 'server' expects 'on' or 'off'"],
    [
      'chardev',
      'socket,id=c,path=x,wait=off',
      "'wait' option is incompatible with socket in client connect mode",
    ],
    [
      'chardev',
      'socket,id=c,path=x,server=on,wait=off,reconnect=1',
      "'reconnect' option is incompatible with socket in server listen mode",
    ],
    ['drive', 'id=a,if=none', "Parameter 'driver' is missing"],
    ['drive', 'file=x,format=raw', 'A drive needs an id or a node-name'],
    ['drive', 'id=a,file=x', "The format of drive 'x' must be given: format=raw or qcow2"],
    ['drive', 'id=a,file=x,format=raw,cache=foo', 'invalid cache option'],
  ]
  for (const [option, text, words] of refused) {
    test(`refused: --${option} ${text}`, async () => {
      expect(await refusal(option, text)).toBe(words)
      expect(names()).toEqual([])
    })
  }
})

describe('cli / options / drives', () => {
  test('the tree of a replication secondary, as its document writes it', async () => {
    const memory = 'driver=memory,size=1048576'
    await apply('drive', `if=none,id=parent0,${memory}`)
    await apply('drive', `if=none,id=hidden,${memory},backing=parent0`)
    await apply('drive', `if=none,id=active,${memory},backing=hidden`)
    const role = 'driver=replication,mode=secondary,top-id=colo-disk0'
    await apply('drive', `if=none,id=childs0,${role},file.driver=raw,file.file=active`)
    const quorum = 'driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=childs0'
    await apply('drive', `if=ide,id=colo-disk0,${quorum}`)
    expect(runtime.graph.lookup('colo-disk0').child('children.0')?.node.name).toBe('childs0')
    expect(runtime.graph.lookup('childs0').child('file')?.node.child('file')?.node.name).toBe(
      'active',
    )
  })

  test('limits of a throttle group may stand one by one', async () => {
    await apply('object', 'throttle-group,id=g,x-bps-total=1048576,x-iops-total=7')
    await apply('drive', 'node-name=t,driver=throttle,throttle-group=g,file.driver=null-co')
    expect(names()).toContain('t')
  })

  test('server and port side by side are the address of an NBD drive', async () => {
    const words = await refusal('drive', 'id=n,driver=nbd,host=127.0.0.1,port=1,export=x')
    expect(words).toBe("Failed to connect to '127.0.0.1:1': Connection refused")
    const uri = await refusal('drive', 'id=n,format=raw,file=nbd://127.0.0.1:1/x')
    expect(uri).toBe(words)
  })
})

describe('cli / options / exports', () => {
  test('server first, then the export, which the id finds again', async () => {
    await apply('blockdev', 'null-co,node-name=a,size=1M')
    expect(await refusal('export', 'nbd,id=e,node-name=a')).toBe('NBD server not running')
    const path = join(dir, 'nbd')
    await apply('nbd-server', `addr.type=unix,addr.path=${path},max-connections=3`)
    await apply('export', 'nbd,id=e,node-name=a,name=disk,writable=on')
    expect(runtime.exports.list()).toMatchObject([{ id: 'e', 'node-name': 'a' }])
    expect(await refusal('export', 'nbd,id=e,node-name=a,name=x')).toBe(
      "Block export id 'e' is already in use",
    )
    expect(await refusal('nbd-server', `addr.type=unix,addr.path=${path}`)).toBe(
      'NBD server already running',
    )
  })
})

describe('cli / options / monitors', () => {
  test('a chardev listens at once and greets when its monitor is there', async () => {
    const path = join(dir, 'q')
    await apply('chardev', `socket,id=c,path=${path},server=on,wait=off`)
    const client = net.connect(path)
    await new Promise((resolve) => client.once('connect', resolve))
    await apply('monitor', 'c')
    expect(await read(client, /\n/)).toMatch(/^\{"QMP": /)
    expect(await refusal('monitor', 'c')).toBe("Device 'c' is in use")
    expect(await refusal('chardev', 'null,id=c')).toMatch(/duplicate property 'c'/)
    client.destroy()
  })

  test('a server that is to wait goes on with the first client', async () => {
    const path = join(dir, 'q')
    let done = false
    const waiting = apply('chardev', `socket,id=c,path=${path},server=on`).then(() => {
      done = true
    })
    await expect.poll(() => existsSync(path), { interval: 2 }).toBe(true)
    expect(done).toBe(false)
    const client = net.connect(path)
    await waiting
    client.destroy()
  })

  test('a server that waits lets the program end', async () => {
    const path = join(dir, 'q')
    const waiting = apply('chardev', `socket,id=c,path=${path},server=on`)
    await expect.poll(() => existsSync(path), { interval: 2 }).toBe(true)
    await runtime.close()
    await waiting
    expect(existsSync(path)).toBe(false)
  })

  test('as a client it connects, and comes again when told to', async () => {
    const path = join(dir, 'peer')
    expect(await refusal('chardev', `socket,id=c,path=${path}`)).toBe(
      `Failed to connect to '${path}': No such file or directory`,
    )
    const peers: net.Socket[] = []
    const arrived: ((socket: net.Socket) => void)[] = []
    const server = net.createServer((socket) => {
      peers.push(socket)
      arrived.shift()?.(socket)
    })
    await new Promise<void>((resolve) => server.listen(path, resolve))
    const peer = (): Promise<net.Socket> => new Promise((resolve) => arrived.push(resolve))
    const first = peer()
    await apply('chardev', `socket,id=d,path=${path},reconnect=1`)
    await apply('monitor', 'd')
    expect(await read(await first, /\n/)).toMatch(/^\{"QMP": /)
    const second = peer()
    peers[0]?.destroy()
    expect(await read(await second, /\n/)).toMatch(/^\{"QMP": /)
    await runtime.close()
    for (const socket of peers) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })

  test('stdio talks over the streams of the program, spread over lines when pretty', async () => {
    await apply('chardev', 'stdio,id=c')
    expect(await refusal('chardev', 'stdio,id=d')).toBe(
      'cannot use stdio by multiple character devices',
    )
    await apply('monitor', 'c,pretty=on')
    expect(await read(output, /\n\}\r\n/)).toMatch(/^\{\r\n {4}"QMP": \{\r\n {8}"version": /)
    input.write('{"execute": "qmp_capabilities"}{"execute": "query-jobs"}')
    const text = await read(output, /\]\r\n\}\r\n/)
    expect(text).toBe(
      '{\r\n    "return": {\r\n    }\r\n}\r\n{\r\n    "return": [\r\n    ]\r\n}\r\n',
    )
  })

  test('devices of the command line are among those that monitors show', async () => {
    await apply('chardev', 'null,id=nothing')
    await apply('chardev', 'stdio,id=c')
    await apply('monitor', 'c')
    await read(output, /\n/)
    input.write('{"execute": "qmp_capabilities"}{"execute": "query-chardev"}')
    expect(await read(output, /label[^\n]*\n/)).toMatch(/"label": "c".*"label": "nothing"/)
  })
})
