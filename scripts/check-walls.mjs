/** Checks the walls of the source tree; prints findings and ends with 1 when there are any. */
import { fileURLToPath } from 'node:url'
import { checkWalls, readTree } from './walls.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const files = readTree(root)
const findings = checkWalls(files)
for (const finding of findings) console.error(finding)
console.log(`${files.size} files, ${findings.length} findings`)
process.exitCode = findings.length === 0 ? 0 : 1
