/**
 * Options of the demo: parsing and the checks that need no disk to be open.
 *
 * Invariants:
 * - Everything wrong with the input is found here, before a process is started.
 */
import { statSync } from 'node:fs'
import { BlockError } from '../../index.ts'

/** Smallest piece a disk is made of. */
const SECTOR = 512

/** Largest disk: tags are 32-bit numbers and the demo keeps a few words for every block. */
const MAX_SIZE = 64 * 1024 ** 3

const UNITS: Readonly<Record<string, number>> = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3 }

/** Options as the command line gives them. */
export interface DemoArguments {
  /** A raw image to replicate instead of memory; it is copied, never changed. */
  readonly disk?: string
  /** Bytes, with `k`, `M` or `G` behind if wanted; default 256M. Not with `disk`. */
  readonly size?: string
  /** How long the guests write; default 5. */
  readonly seconds: string
  /** Seed of the pattern and of the moment of death; default: a new one. */
  readonly seed?: string
  /** Print the result as JSON. */
  readonly json?: boolean
  /** The process is one side of the pair and made as this says. */
  readonly side?: string
  /** Change one block behind the verifier's back: the run must fail. */
  readonly break?: boolean
}

/** Options that were checked. */
export interface DemoOptions {
  /** Path of the image, or undefined for memory. */
  readonly disk: string | undefined
  /** Length of the disk in bytes. */
  readonly size: number
  /** How long the guests write at most, in seconds. */
  readonly seconds: number
  /** 32-bit seed. */
  readonly seed: number
  /** Whether the result is JSON. */
  readonly json: boolean
  /** Whether to change a block before the verdict. */
  readonly sabotage: boolean
}

/** Checks the arguments. Errors: EINVAL, or what the host says of the file. */
export function checkOptions(args: DemoArguments): DemoOptions {
  if (args.disk !== undefined && args.size !== undefined) {
    throw invalid('--size cannot be given with --disk: the image has a size')
  }
  const size = args.disk === undefined ? parseSize(args.size ?? '256M') : imageSize(args.disk)
  const what = args.disk === undefined ? '--size' : `the size of '${args.disk}'`
  if (size === 0) throw invalid(`${what} must be above 0`)
  if (size % SECTOR !== 0) throw invalid(`${what} must be a multiple of 512, but is ${size}`)
  if (size > MAX_SIZE) throw invalid(`${what} must be at most 64G`)
  const seconds = Number(args.seconds)
  if (!(seconds > 0 && seconds <= 3600)) {
    throw invalid(`--seconds must be a number above 0 and at most 3600, not '${args.seconds}'`)
  }
  return {
    disk: args.disk,
    size,
    seconds,
    seed: args.seed === undefined ? freshSeed() : parseSeed(args.seed),
    json: args.json === true,
    sabotage: args.break === true,
  }
}

function parseSize(text: string): number {
  const match = /^(\d+)([kmg]?)$/i.exec(text)
  if (match === null) throw invalid(`--size must look like 1048576, 64M or 1G, not '${text}'`)
  return Number(match[1]) * (UNITS[(match[2] ?? '').toLowerCase()] ?? 1)
}

function parseSeed(text: string): number {
  const seed = Number(text)
  if (!/^\d+$/.test(text) || seed > 0xffff_ffff) {
    throw invalid(`--seed must be a whole number from 0 to 4294967295, not '${text}'`)
  }
  return seed
}

function freshSeed(): number {
  return Math.floor(Math.random() * 0x1_0000_0000)
}

function imageSize(path: string): number {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) {
    throw new BlockError('ENOENT', `Could not open '${path}': No such file or directory`, { path })
  }
  if (!stat.isFile()) throw invalid(`'${path}' is not a regular file`)
  return stat.size
}

function invalid(sentence: string): BlockError {
  return new BlockError('EINVAL', sentence, { op: 'demo' })
}
